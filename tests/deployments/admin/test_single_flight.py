"""A question that is not answered costs one thread and nobody's patience."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cluster.api_errors import ApiError
from deployments.admin.single_flight import SingleFlight


async def test_a_question_without_an_answer_is_put_once_and_given_up_by_all_who_ask():
    asked, answer = [], threading.Event()

    def look() -> int:
        asked.append(threading.current_thread())
        answer.wait(30)
        return len(asked)

    shared = SingleFlight(look, 0.1, "the controller")
    try:
        for _ in range(2):
            outcomes = await asyncio.gather(*(shared.result() for _ in range(50)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {ApiError}
            assert {(o.status, o.message) for o in outcomes} == {(503, "the controller has not answered within 0.1 s")}
        assert len(asked) == 1
    finally:
        answer.set()
    patient = SingleFlight(look, 20, "the controller")
    assert [await patient.result(), await patient.result()] == [2, 3], "an old answer is not told again"


async def test_one_who_leaves_does_not_take_the_answer_away_from_the_others():
    answer = threading.Event()
    shared = SingleFlight(lambda: answer.wait(30), 20, "x")
    leaving, staying = asyncio.ensure_future(shared.result()), asyncio.ensure_future(shared.result())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    answer.set()
    assert await staying is True


async def test_a_failure_is_told_to_whoever_asked_and_not_kept():
    answers = iter([ValueError("once"), None])

    def look() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "fine"

    shared = SingleFlight(look, 20, "x")
    with pytest.raises(ValueError, match="once"):
        await shared.result()
    assert await shared.result() == "fine"
