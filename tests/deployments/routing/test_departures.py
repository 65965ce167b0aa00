"""Calls of sequences that nobody wants any more."""

from __future__ import annotations

import pytest
from ray.serve import context as serve_context

from cluster.journal import JournalEntry
from cluster.outputs import GenerateReply, TokenDelta
from cluster.sampling_params import SamplingParams
from deployments.routing import departures
from tests.deployments.routing.scripted_engine import Client, Engine, answer, sent
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


@pytest.mark.parametrize("was_taken", [True, False])
async def test_a_client_that_leaves_lets_its_engine_answer_the_call(choices, was_taken):
    """Serve logs a call that is cancelled, and counts it as an error."""
    engine = Engine()
    client = Client(engine, choices=choices)
    submission = client.start(answer(9))
    _, reply = await engine.called(1)
    choices.chose(sent("r"), "e")
    if was_taken:
        engine.messages.put_nowait([TokenDelta("r", 0, 0, [7])])
        await until(lambda: client.tokens == [7], 5)
    client.cancel(submission)
    if not was_taken:
        assert engine.aborted == []
        engine.messages.put_nowait([TokenDelta("r", 0, 0, [])])
    await until(lambda: engine.aborted == [("r", 0)], 5)
    engine.messages.put_nowait([TokenDelta("r", 0, 1, [], finish_reason="abort")])
    assert not reply.done()
    reply.set_result(GenerateReply(1, "abort", "e"))
    await until(lambda: ("r", 0) not in client._departures, 5)
    assert (client.num_running, len(engine.calls), sum(client.events.counts.values())) == (0, 1, 0)
    await client.close()


async def test_a_call_that_no_engine_has_or_answers_is_cancelled(choices, monkeypatch):
    monkeypatch.setattr(departures, "_PATIENCE_S", 0.1)
    engine = Engine()
    engine.attached = True
    client = Client(engine, choices=choices)
    for name, chosen in (("a", ""), ("b", "e")):
        submission = client.submit(JournalEntry(name, [1], SamplingParams()), client._deliver, client.ended.set_result)
        _, reply = await engine.called(len(engine.calls) + 1)
        choices.chose(sent(name), chosen)
        client.cancel(submission)
        assert reply.cancelled() == (not chosen)
        await until(reply.cancelled, 5)
    await client.close()


async def test_a_call_outlives_the_http_request_that_it_came_with(choices):
    """Serve cancels the calls of an HTTP request whose client has gone, before the ingress can say that it is no fault."""
    serve_context._serve_request_context.set(serve_context._RequestContext(_internal_request_id="http"))
    engine = Engine()
    client = Client(engine, choices=choices)
    client.start(answer(9))
    await engine.called(1)
    assert engine.callers == [""]
    await client.close()
