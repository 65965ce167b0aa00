"""Requests that go to the engine's process before Serve's call does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.journal import JournalEntry
from cluster.outputs import GenerateReply, NotAdmitted, TokenDelta
from cluster.request import EngineRequest
from deployments.routing.router.engine_choices import EngineChoices
from tests.deployments.routing.scripted_engine import Client, Engine, answer
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


async def started(choices: EngineChoices, entry: JournalEntry) -> tuple[Engine, Client, list[EngineRequest]]:
    """A request that an engine was called with; and what is sent to its runner."""
    engine = Engine()
    client = Client(engine, choices=choices, hang_timeout_s=60.0)
    client.start(entry)
    await engine.called(1)
    sent: list[EngineRequest] = []
    client.stream.reached(0, cast(Any, SimpleNamespace(send=lambda request: sent.append(request) is None)))
    return engine, client, sent


async def test_the_engine_that_was_chosen_is_told_and_the_call_is_answered_after_the_tokens(choices):
    engine, client, sent = await started(choices, answer(2))
    request, reply = engine.calls[0]
    choices.chose(request, "e")
    choices.chose(request, "e")
    assert sent == [request]
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7, 8], finish_reason="length")])
    assert await client.ended is None
    reply.set_result(GenerateReply(2, "length", "e"))
    assert (client.tokens, len(engine.calls), engine.aborted) == ([7, 8], 1, [])
    await client.close()


async def test_an_answer_that_has_begun_goes_with_the_call_alone(choices):
    engine, client, sent = await started(choices, answer(9, attempt=1, output_token_ids=[7], fingerprint="f"))
    choices.chose(engine.calls[0][0], "e")
    assert sent == []
    await client.close()


async def test_when_another_engine_is_chosen_the_first_is_fenced_and_what_it_made_is_kept(choices):
    choices.set_engines({"e": "f", "other": "f"})
    engine, client, sent = await started(choices, answer(3))
    choices.chose(engine.calls[0][0], "e")
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7])])
    await until(lambda: client.tokens == [7], 5)
    choices.chose(engine.calls[0][0], "other")
    request, _ = await engine.called(2)
    assert ("r", 0) in engine.aborted and engine.calls[0][1].cancelled()
    assert (request.attempt, request.output_token_ids) == (1, [7])
    engine.messages.put_nowait([TokenDelta("r", 0, 1, [99])])  # of the first, too late
    engine.messages.put_nowait([TokenDelta("r", 1, 1, [8, 9], finish_reason="length")])
    assert await client.ended is None
    assert (client.tokens, len(sent)) == ([7, 8, 9], 1)
    await client.close()


async def test_a_refusal_of_the_replica_ends_what_its_runner_has_begun(choices):
    engine, client, sent = await started(choices, answer(2))
    choices.chose(engine.calls[0][0], "e")
    engine.calls[0][1].set_result(NotAdmitted("e", "the engine's node drains", last_resort=True))
    request, _ = await engine.called(2)
    assert (engine.aborted, request.attempt) == ([("r", 0)], 1)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [99])])
    engine.messages.put_nowait([TokenDelta("r", 1, 0, [7, 8], finish_reason="length")])
    assert await client.ended is None
    assert (client.tokens, len(sent)) == ([7, 8], 1)
    await client.close()


async def test_a_client_that_leaves_before_the_engine_speaks_ends_it_there(choices):
    engine, client, _ = await started(choices, answer(9))
    request, reply = engine.calls[0]
    choices.chose(request, "e")
    submission = client._submissions.of("r")
    assert submission is not None
    client.cancel(submission)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [])])
    await until(lambda: engine.aborted == [("r", 0)], 5)
    assert not reply.cancelled()
    await client.close()
