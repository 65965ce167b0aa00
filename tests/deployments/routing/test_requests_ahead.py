"""Requests that go to the engine's process before Serve's call does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.errors import OverloadedError
from cluster.grammar import Grammar
from cluster.journal import JournalEntry
from cluster.outputs import AttachRequired, EngineLoad, GenerateReply, NotAdmitted, NotBegun, TokenDelta
from cluster.replies import RequestRefused
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from deployments.metrics.request_events import ATTEMPTS, HANDOVERS
from deployments.routing import shared_calls
from deployments.routing.router.engine_choices import EngineChoices
from tests.deployments.routing.scripted_engine import Client, Engine, answer, stream_of
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node", "soon")


@pytest.fixture
def soon(monkeypatch):
    """Calls follow as soon as there is a turn."""
    monkeypatch.setattr(shared_calls, "FOLLOW_AFTER_S", 0.0)


async def started(choices: EngineChoices, entry: JournalEntry) -> tuple[Engine, Client, list[EngineRequest]]:
    """A request that an engine was called with; and what is sent to its runner."""
    engine = Engine()
    client = Client(engine, choices=choices, hang_timeout_s=60.0)
    client.start(entry)
    await engine.called(1)
    sent: list[EngineRequest] = []
    sender = SimpleNamespace(
        send=lambda request: sent.append(request) is None, abort=lambda key: engine.aborted.append(key) is None
    )
    client.stream.reached(0, cast(Any, sender))
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


async def attached(choices: EngineChoices) -> tuple[Engine, Client, list[Any]]:
    """A client whose engine can be told things before its first call, and what it is told: requests, and keys of aborts."""
    engine = Engine()
    client = Client(engine, choices=choices, hang_timeout_s=60.0)
    choices.first_choice = lambda request: "e"
    client._streams.attach(AttachRequired("e", engine, "f"))
    await until(lambda: engine.attached, 5)
    told: list[Any] = []

    def send(request: EngineRequest) -> bool:
        engine.ahead[request.request_id, request.attempt] = request
        told.append(request)
        return True

    client.stream.reached(0, cast(Any, SimpleNamespace(send=send, abort=lambda it: told.append(it) or True)))
    return engine, client, told


def sequence(name: str, max_tokens: int = 9) -> JournalEntry:
    return JournalEntry(name, [1], SamplingParams(max_tokens=max_tokens))


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_burst_is_sent_at_once_and_one_call_follows(choices):
    engine, client, told = await attached(choices)
    names = [str(number) for number in range(10)]
    for name in names:
        client.submit(sequence(name), lambda delta: None, print)
    assert [request.request_id for request in told] == names and not engine.calls
    await engine.called(10)
    assert [request.request_id for request, _ in engine.calls] == names
    assert all(choices.chosen(name) == "e" and choices.is_pinned(name) for name in names)
    assert engine.callers == [""], "one, and of no HTTP request"
    await client.close()


async def test_a_request_whose_grammar_may_be_refused_is_called_for_at_once(choices, monkeypatch):
    monkeypatch.setattr(shared_calls, "FOLLOW_AFTER_S", 60.0)
    engine, client, _ = await attached(choices)
    client.submit(sequence("plain"), lambda delta: None, print)
    await asyncio.sleep(0.02)
    assert not engine.calls
    params = SamplingParams(max_tokens=9, grammar=Grammar("regex", "a+"))
    client.submit(JournalEntry("masked", [1], params), lambda delta: None, print)
    await engine.called(2)
    await client.close()


async def test_the_call_of_an_answer_that_is_over_follows_to_its_engine_and_notes_its_way(choices):
    engine, client, told = await attached(choices)
    submission = client.start(answer(2))
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, [7, 8], finish_reason="length")])
    assert await client.ended is None and client.num_running == 0
    client.cancel(submission)  # as whoever read the answer does
    request, reply = await engine.called(1)
    assert (request, told) == (submission.request, [request])
    assert choices.token_weight("e") == 0 and not choices.place("r") and not choices.chosen("r")
    reply.set_result(GenerateReply(2, "length", "e", marks={"scheduled": 1.0, "first_step": 2.0}))
    await until(lambda: submission.entry.engine_id == "e", 5)
    assert submission.entry.marks["first_step"] == 2.0
    assert (client.tokens, len(engine.calls)) == ([7, 8], 1)
    await client.close()


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_call_that_finds_nothing_is_made_with_the_request_unless_it_is_over(choices, is_over):
    engine, client, _ = await attached(choices)
    submission = client.start(answer(1))
    last = [TokenDelta("r", 0, 0, [7], finish_reason="length")]
    if is_over:
        client._on_deltas(client.stream, last)
    _, reply = await engine.called(1)
    reply.set_result(NotBegun("e"))
    if is_over:
        await passes(10)
    else:
        request, _ = await engine.called(2)
        assert request == submission.request and engine.callers == ["", ""]
        client._on_deltas(client.stream, last)
    assert await client.ended is None
    assert (client.tokens, len(engine.calls)) == ([7], 1 if is_over else 2)
    await client.close()


async def test_of_a_shared_call_each_request_is_answered_lost_and_given_up_by_itself(choices):
    engine, client, told = await attached(choices)
    errors: dict[str, Any] = {}
    started = [
        client.submit(sequence(name), lambda delta: None, lambda error, name=name: errors.update({name: error}))
        for name in "abc"
    ]
    await engine.called(3)
    (_, of_a), (_, of_b), (_, of_c) = engine.calls
    of_a.set_result(RequestRefused(OverloadedError("the queue is full")))
    await until(lambda: errors, 5)
    assert errors["a"].status == 429 and client.num_running == 2
    client.cancel(started[1])
    assert ("b", 0) in told and not of_b.done() and client.num_running == 1
    client._on_deltas(client.stream, [TokenDelta("c", 0, 0, [7], finish_reason="length")])
    of_b.set_result(GenerateReply(0, "abort", "e"))
    of_c.set_result(GenerateReply(1, "length", "e"))
    await until(lambda: not len(client._shared), 5)
    assert started[2].entry.engine_id == "e" and len(errors) == 1
    await client.close()


async def test_a_call_that_fails_loses_those_that_have_not_ended(choices):
    engine, client, _ = await attached(choices)
    client.start(answer(2))
    _, reply = await engine.called(1)
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, [7])])
    reply.set_exception(RuntimeError("the connection broke"))
    request, _ = await engine.called(2)
    assert (request.attempt, request.output_token_ids) == (1, [7])
    client._on_deltas(client.stream, [TokenDelta("r", 1, 1, [8], finish_reason="length")])
    assert await client.ended is None
    assert client.tokens == [7, 8]
    await client.close()


@pytest.mark.parametrize("is_called", [False, True])
async def test_a_client_that_leaves_before_its_call_or_after_it_ends_what_went_ahead(choices, is_called):
    engine, client, told = await attached(choices)
    submission = client.start(answer(9))
    if is_called:
        await engine.called(1)
    client.cancel(submission)
    assert told == [submission.request, ("r", 0)], "behind the request, on the same way"
    await passes(5)
    assert [reply.cancelled() for _, reply in engine.calls] == [False] * is_called
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, []), TokenDelta("r", 0, 0, [7])])
    assert (client.tokens, client.num_running, engine.aborted, len(told)) == ([], 0, [], 2)
    await client.close()


async def test_a_client_that_leaves_once_its_call_is_routed_tells_the_engine_once(choices):
    engine, client, told = await attached(choices)
    submission = client.start(answer(9))
    request, reply = await engine.called(1)
    choices.chose(request, "e")
    client.cancel(submission)
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, [])])
    assert told == [request, ("r", 0)] and not engine.aborted and not reply.cancelled()
    reply.set_result(GenerateReply(0, "abort", "e"))
    await client.close()


@pytest.mark.parametrize("is_called", [False, True])
@pytest.mark.parametrize("tokens", [None, [], [7]])
async def test_an_engine_that_dies_before_or_after_the_call_loses_and_repeats_nothing(choices, tokens, is_called):
    choices.set_engines({"e": "f", "other": "f"})
    engine, client, told = await attached(choices)
    submission = client.start(answer(3))
    if is_called:
        choices.chose((await engine.called(1))[0], "e")
    if tokens is not None:
        client._on_deltas(client.stream, [TokenDelta("r", 0, 0, tokens)])
    stream = client.stream
    stream.alive = False
    client._on_engine_lost(stream, "its process has ended")
    request, _ = await engine.called(2 if is_called else 1)
    assert [one.attempt for one, _ in engine.calls] == ([0, 1] if is_called else [1]), "a dead engine is not called"
    assert (request.attempt, request.output_token_ids, submission.suspicion.deaths) == (
        1,
        tokens or [],
        bool(tokens or tokens == []),
    )
    assert client.events.counts[ATTEMPTS] == 1 and len(told) == 1
    engine.messages.put_nowait([TokenDelta("r", 0, len(tokens or []), [99])])
    engine.messages.put_nowait(
        [TokenDelta("r", 1, len(tokens or []), [7, 8, 9][len(tokens or []) :], finish_reason="length")]
    )
    assert await client.ended is None
    assert client.tokens == [7, 8, 9]
    await client.close()


@pytest.mark.parametrize("is_called", [False, True])
async def test_an_engine_that_drains_says_so_on_the_stream_and_the_request_goes_elsewhere(choices, is_called):
    choices.set_engines({"e": "f", "other": "f"})
    engine, client, _ = await attached(choices)
    submission = client.start(answer(2))
    if is_called:
        choices.chose((await engine.called(1))[0], "e")
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, [], finish_reason="handover")])
    assert stream_of(client) is None, "it never had it"
    request, _ = await engine.called(2 if is_called else 1)
    assert request.attempt == 1 and not submission.is_admitted and choices.is_avoided("e")
    assert not client.events.counts[HANDOVERS] and not client.events.counts[ATTEMPTS]
    if is_called:
        assert not engine.calls[0][1].cancelled(), "it is answered like any other"
        engine.calls[0][1].set_result(NotAdmitted("e", "the engine drains"))
    engine.messages.put_nowait([TokenDelta("r", 1, 0, [7, 8], finish_reason="length")])
    assert await client.ended is None
    assert client.tokens == [7, 8]
    await client.close()


@pytest.mark.parametrize("admitted", [False, True])
async def test_a_call_that_is_refused_ends_what_went_ahead(choices, admitted):
    engine, client, told = await attached(choices)
    submission = client.start(answer(2))
    submission.is_admitted = admitted
    _, reply = await engine.called(1)
    reply.set_result(RequestRefused(OverloadedError("the queue is full")))
    if admitted:
        request, _ = await engine.called(2)
        assert (request.attempt, told) == (1, [submission.request, ("r", 0)])
        engine.messages.put_nowait([TokenDelta("r", 1, 0, [7, 8], finish_reason="length")])
        assert await client.ended is None
    else:
        error = await client.ended
        assert error is not None and error.status == 429
        assert told == [submission.request, ("r", 0)] and client.num_running == 0
    await client.close()


async def test_a_token_stream_that_is_missing_at_the_engine_has_the_call_made_again_there(choices):
    engine, client, told = await attached(choices)
    client.start(answer(2))
    _, reply = await engine.called(1)
    reply.set_result(AttachRequired("e", engine, "f"))
    request, _ = await engine.called(2)
    assert (request.attempt, len(told), choices.place("r")) == (0, 1, "e")
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, [7, 8], finish_reason="length")])
    assert await client.ended is None
    await client.close()


async def test_what_went_ahead_counts_once_in_its_engines_load(choices):
    engine, client, _ = await attached(choices)
    choices.first_choice = lambda request: choices.sends(request, "e") or "e"
    client.start(JournalEntry("r", [1] * 50, SamplingParams(max_tokens=9)))
    assert choices.token_weight("e") == 500
    client._on_deltas(client.stream, [TokenDelta("r", 0, 0, []), EngineLoad(1, 1, num_tokens=50)])
    request, _ = await engine.called(1)
    choices.sends(request, "e")
    choices.chose(request, "e")
    assert choices.token_weight("e") == 50
    await client.close()


async def test_an_engine_that_leaves_is_silent_or_avoided_is_sent_nothing_ahead(choices):
    engine, client, told = await attached(choices)
    stream = client.stream
    for name, value in (("leaves", True), ("silent", True), ("alive", False)):
        before = getattr(stream, name)
        setattr(stream, name, value)
        assert client.submit(sequence(name), lambda delta: None, print).ahead is None
        setattr(stream, name, before)
    choices.avoid("e", 5.0)
    assert client.submit(sequence("avoided"), lambda delta: None, print).ahead is None
    choices.first_choice = lambda request: "unknown"
    assert client.submit(sequence("unknown"), lambda delta: None, print).ahead is None
    await engine.called(5)
    assert not told and not any(choices.is_pinned(request.request_id) for request, _ in engine.calls)
    await client.close()
