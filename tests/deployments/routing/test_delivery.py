"""Plain tokens of a step reach whoever asked as deltas do: each once, in order, and only of the present attempt."""

from __future__ import annotations

import pytest

from cluster.journal import JournalEntry
from cluster.outputs import ENGINE_LEAVES, EngineLoad, PlainTokens, TokenDelta
from cluster.sampling_params import SamplingParams
from deployments.metrics.request_events import FENCED
from deployments.routing import token_streams
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from tests.deployments.routing.scripted_engine import Client, Engine, answer, sent
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


def plain(*tokens: tuple[str, int, int, int]) -> PlainTokens:
    """Request, attempt, index and token of each."""
    return PlainTokens(*map(list, zip(*tokens)))


async def begun(choices: EngineChoices) -> tuple[Engine, Client, Submission]:
    """An engine that has the call of an answer, and its client."""
    engine = Engine()
    client = Client(engine, choices=choices)
    submission = client.start(answer(9))
    await engine.called(1)
    choices.chose(sent("r"), "e")
    return engine, client, submission


async def test_what_is_repeated_or_of_another_attempt_is_dropped(choices):
    engine, client, _ = await begun(choices)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7]), plain(("r", 0, 1, 8))])
    engine.messages.put_nowait([plain(("r", 0, 1, 8), ("gone", 0, 4, 1)), plain(("r", 1, 2, 5)), plain(("r", 0, 2, 9))])
    await until(lambda: client.tokens == [7, 8, 9], 5)
    assert client.events.counts[FENCED] == 1
    assert {*engine.aborted} == {("gone", 0), ("r", 1)}
    engine.messages.put_nowait([plain(("r", 0, 3, 1)), TokenDelta("r", 0, 4, [2], finish_reason="stop")])
    assert await client.ended is None
    assert client.tokens == [7, 8, 9, 1, 2]
    await client.close()


async def test_a_token_that_is_missing_has_the_stream_attached_again(choices):
    engine, client, _ = await begun(choices)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7])])
    engine.messages.put_nowait([plain(("r", 0, 2, 9))])
    await until(lambda: client._streams._resume_indices() == {"r": 1} and engine.messages.empty(), 5)
    engine.messages.put_nowait([plain(("r", 0, 1, 8), ("r", 0, 2, 9))])
    await until(lambda: client.tokens == [7, 8, 9], 5)
    await client.close()


async def test_a_token_that_is_missing_keeps_nothing_from_the_others_in_its_message(choices, monkeypatch):
    """Not even what is said once, as that the engine leaves."""
    engine, client, _ = await begun(choices)
    others: list[int] = []
    of_other = JournalEntry("other", [1], SamplingParams(max_tokens=9))
    client.submit(of_other, lambda delta: others.extend(delta.token_ids), client.ended.set_result)
    await engine.called(2)
    choices.chose(sent("other"), "e")
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7]), TokenDelta("other", 0, 0, [1])])
    await until(lambda: others == [1], 5)
    # What comes, comes before the stream is attached again.
    monkeypatch.setattr(token_streams, "_FIRST_BACKOFF_S", 60.0)
    behind = [TokenDelta("r", 0, 5, [9]), TokenDelta("other", 0, 3, [4]), EngineLoad(3, 5), ENGINE_LEAVES]
    engine.messages.put_nowait([plain(("r", 0, 3, 9), ("other", 0, 1, 2)), plain(("other", 0, 2, 3)), *behind])
    await until(lambda: others == [1, 2, 3, 4], 5)
    assert client.tokens == [7] and client.stream.leaves and client.stream.load == EngineLoad(3, 5)
    await client.close()


async def test_the_first_token_after_a_loss_counts_as_recovery(choices):
    engine, client, submission = await begun(choices)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7])])
    await until(lambda: client.tokens == [7], 5)
    submission.lost_at = 0.0
    engine.messages.put_nowait([plain(("r", 0, 1, 8))])
    await until(lambda: client.tokens == [7, 8] and submission.lost_at is None, 5)
    await client.close()
