"""What follows on each way in which an attempt ends: another one, an error, or the rest of the answer."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError

from cluster.api_errors import ApiError
from cluster.errors import OverloadedError
from cluster.journal import JournalEntry
from cluster.outputs import ENGINE_LEAVES, AttachRequired, EngineLoad, GenerateReply, NotAdmitted, TokenDelta
from cluster.replies import EngineLost, RequestRefused
from cluster.sampling_params import SamplingParams
from deployments.routing import attempts
from deployments.routing.router.engine_choices import EngineChoices
from tests.deployments.routing.scripted_engine import Client, Engine, answer, sent, stream_of
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


@pytest.mark.parametrize(
    ("reason", "event"), [("handover", "bireme_request_handovers"), ("abort", "bireme_request_attempts")]
)
async def test_a_reply_says_that_an_answer_goes_on_elsewhere_though_its_last_delta_was_lost(reason, event):
    engine = Engine()
    client = Client(engine)
    client.start(answer(2))
    _, reply = await engine.called(1)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7])])
    await until(lambda: client.tokens == [7], 5)
    reply.set_result(GenerateReply(1, reason, "e"))
    request, _ = await engine.called(2, within_s=1.0)
    assert (request.attempt, request.output_token_ids) == (1, [7])
    assert client.events.counts[event] == 1
    engine.messages.put_nowait([TokenDelta("r", 1, 1, [8], finish_reason="length")])
    assert await client.ended is None
    assert client.tokens == [7, 8]
    await client.close()


async def test_the_reply_of_a_finished_answer_waits_for_its_tokens():
    engine = Engine()
    client = Client(engine)
    client.start(answer(2))
    _, reply = await engine.called(1)
    reply.set_result(GenerateReply(2, "length", "e"))
    await asyncio.sleep(0.1)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7, 8], finish_reason="length")])
    assert await client.ended is None
    assert (client.tokens, len(engine.calls)) == ([7, 8], 1)
    await client.close()


async def test_an_answer_whose_last_token_came_after_all_is_not_submitted_again():
    engine = Engine()
    client = Client(engine)
    client.start(answer(2))
    await engine.called(1)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [7])])
    await until(lambda: client.tokens == [7], 5)
    # Both before the request's own task goes on.
    client._on_engine_lost(client.stream, "nothing was heard from it")
    client._on_deltas(client.stream, [TokenDelta("r", 0, 1, [8], finish_reason="length")])
    assert await client.ended is None
    await asyncio.sleep(0.1)
    assert (client.tokens, len(engine.calls), client.num_running) == ([7, 8], 1, 0)
    await client.close()


@pytest.mark.parametrize(("fingerprint_of_other", "times"), [("f", 2), ("another", 0)])
async def test_a_request_is_passed_on_only_so_often_and_only_to_engines_that_may_continue_it(
    monkeypatch, fingerprint_of_other, times
):
    monkeypatch.setattr(attempts, "AVOID_SLOW_S", 0.0)
    choices = EngineChoices()
    choices.set_engines({"e": "f", "other": fingerprint_of_other})
    engine = Engine()
    engine.attached = True  # its calls stay without an answer
    client = Client(engine, choices=choices, hang_timeout_s=0.3)
    client.start(answer(2, output_token_ids=[7], fingerprint="f"))
    await engine.called(1)
    calls = 0
    while calls != len(engine.calls):
        calls = len(engine.calls)
        choices.chose(sent("r"), "e")
        await asyncio.sleep(0.8)
    assert calls == 1 + times
    await client.close()


@pytest.mark.parametrize("delta", [TokenDelta("r", 4, 0, [7]), TokenDelta("long gone", 0, 5, [7])])
async def test_an_engine_that_runs_what_was_given_up_is_told_once(delta):
    engine = Engine()
    client = Client(engine)
    client.start(answer(9, attempt=5))
    await engine.called(1)
    for index in range(3):
        engine.messages.put_nowait([delta._replace(index=index)])
    engine.messages.put_nowait([delta._replace(request_id="finished", finish_reason="length")])
    engine.messages.put_nowait([TokenDelta("r", 5, 0, [8])])
    await until(lambda: client.tokens == [8], 5)
    assert engine.aborted == [(delta.request_id, delta.attempt)]
    await client.close()


async def test_a_request_that_is_passed_on_is_aborted_where_it_was_not_taken():
    choices = EngineChoices()
    choices.set_engines({"e": "f", "other": "f"})
    engine = Engine()
    client = Client(engine, choices=choices, hang_timeout_s=0.6)
    client.start(answer(2))
    await engine.called(1)
    choices.chose(sent("r"), "e")
    await engine.called(2)
    assert engine.aborted == [("r", 0)]
    await client.close()


async def test_where_there_is_no_engine_requests_and_suspects_are_refused_after_a_time(monkeypatch):
    monkeypatch.setattr(attempts, "ADMISSION_TIMEOUT_S", 0.3)
    engine = Engine()
    engine.attached = True  # its calls stay without an answer
    client = Client(engine)
    errors: list[ApiError] = []
    for name in "abc":
        suspect = client.submit(JournalEntry(name, [1], SamplingParams()), client._deliver, errors.append)
        suspect.suspicion.engine_died(0, alone=name == "a", isolated=False)
        suspect.suspicion.engine_died(0, alone=name == "a", isolated=False)
        assert suspect.suspicion.must_isolate == (name != "a")
    await until(lambda: len(errors) == 3, 5)
    assert [(error.status, error.code) for error in errors] == [(503, "engine_unavailable")] * 3
    assert all(call.cancelled() for _, call in engine.calls)
    # With an engine that is only busy, a request waits on.
    client.choices.set_engines({"e": "f"})
    client.start(answer(1))
    await asyncio.sleep(0.8)
    assert (client.num_running, client.ended.done()) == (1, False)
    await client.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConnectionError("call failed"), "engine_dead"), (ActorDiedError(), "request_quarantined")],
)
async def test_only_the_death_of_an_engine_counts_against_a_request(error, code):
    engine = Engine()
    client = Client(engine)
    client.start(answer(9))
    for times in range(1, 4):
        request, reply = await engine.called(times)
        engine.messages.put_nowait([TokenDelta("r", request.attempt, 0, [])])
        await until(lambda: stream_of(client) is not None, 5)
        reply.set_exception(error)
        await until(lambda made=times: client.ended.done() or len(engine.calls) > made, 5)
        if client.ended.done():
            break
    refusal = await asyncio.wait_for(client.ended, 5)
    assert refusal is not None
    assert (refusal.code, times) == (code, 3 if code == "engine_dead" else 2)
    await client.close()


async def test_a_request_that_came_while_there_was_no_engine_waits_where_the_queue_is_full():
    engine = Engine()
    client = Client(engine)
    client.start(answer(1))
    _, refused = await engine.called(1)
    refused.set_result(RequestRefused(OverloadedError("8 requests are waiting, the limit is 8")))
    await engine.called(2)
    assert not client.ended.done()
    await client.close()


@pytest.mark.parametrize("was_taken", [True, False])
async def test_only_a_request_that_an_engine_had_taken_waits_where_the_queue_is_full(was_taken):
    full = RequestRefused(OverloadedError("8 requests are waiting, the limit is 8"))
    engine = Engine()
    client = Client(engine)
    client.choices.set_engines({"e": "f"})
    client.start(answer(1))
    _, lost = await engine.called(1)
    if was_taken:
        engine.messages.put_nowait([TokenDelta("r", 0, 0, [])])
        await until(lambda: stream_of(client) is not None, 5)
    lost.set_result(EngineLost("e", "the call failed"))
    request, refused = await engine.called(2)
    # An engine tells of a request before it looks at it.
    engine.messages.put_nowait([TokenDelta("r", request.attempt, 0, [])])
    await until(lambda: stream_of(client) is not None, 5.0)
    refused.set_result(full)
    if was_taken:
        request, _ = await engine.called(3)
        assert (request.attempt, stream_of(client)) == (2, None)
        engine.messages.put_nowait([TokenDelta("r", request.attempt, 0, [7], finish_reason="length")])
        assert await client.ended is None
    else:
        error = await asyncio.wait_for(client.ended, 5)
        assert error is not None
        assert error.status == 429
    await client.close()


@pytest.mark.parametrize("was_taken", [True, False])
async def test_only_who_was_at_an_engine_passes_those_who_wait_and_not_who_was_refused(was_taken):
    engine = Engine()
    client = Client(engine)
    client.start(answer(1))  # while there is no engine: no full queue refuses it for good
    choices = client.choices
    choices.set_engines({"e": "f", "other": "f"})
    choices.announced("e", EngineLoad(9, 9, line_length=1))
    choices.announced("other", EngineLoad(9, 9, open_places=1))
    request, reply = await engine.called(1)
    assert choices.open_to(request) == {"e"}
    # An engine tells of a request before it looks at it.
    engine.messages.put_nowait([TokenDelta("r", 0, 0, [])])
    await until(lambda: stream_of(client) is not None, 5)
    full = RequestRefused(OverloadedError("8 requests are waiting, the limit is 8"))
    reply.set_result(EngineLost("e", "the call failed") if was_taken else full)
    request, _ = await engine.called(2)
    assert request.attempt == 1 and request.came_at
    choices.announced("e", EngineLoad(9, 9, line_length=1))
    choices.announced("other", EngineLoad(9, 9, open_places=1))
    choices.trust("e")
    assert choices.open_to(request) == (None if was_taken else {"e"})
    await client.close()
    assert choices.open_to(request) is not None, "nothing is kept of a request that is over"


@pytest.mark.parametrize("way", ["comes while the last one leaves", "is refused by one that leaves", "is on its way"])
async def test_what_waits_for_a_first_engine_is_not_refused_by_a_full_queue(choices, way):
    """The router still knows the last engine, or no more, when the next one has come and others have filled its queue."""
    engine = Engine()
    client = Client(engine, choices=choices)
    client._streams.attach(AttachRequired("e", engine, "f"))
    engine.messages.put_nowait([EngineLoad(9, 9)])
    await until(lambda: client.stream.load, 5)
    if way == "comes while the last one leaves":
        engine.messages.put_nowait([ENGINE_LEAVES])
        await until(lambda: client.stream.leaves, 5)
    client.check_room(1)
    client.start(answer(1))
    _, reply = await engine.called(1)
    if way == "is refused by one that leaves":
        engine.messages.put_nowait([ENGINE_LEAVES])
        await until(lambda: client.stream.leaves, 5)
        reply.set_result(NotAdmitted("e", "the engine drains"))
        _, reply = await engine.called(2)
    elif way == "is on its way":
        choices.set_engines({})
    choices.set_engines({"next": "f"})
    reply.set_result(RequestRefused(OverloadedError("8 requests are waiting, the limit is 8")))
    request, reply = await engine.called(len(engine.calls) + 1)
    assert request.attempt == 1
    engine.messages.put_nowait([TokenDelta("r", 1, 0, [7], finish_reason="length")])
    assert await asyncio.wait_for(client.ended, 5) is None
    await client.close()


async def test_who_came_while_there_was_an_engine_is_refused_by_its_full_queue(choices):
    engine = Engine()
    client = Client(engine, choices=choices)
    client._streams.attach(AttachRequired("e", engine, "f"))
    client.start(answer(1))
    _, reply = await engine.called(1)
    choices.set_engines({"e": "f", "next": "f"})
    reply.set_result(RequestRefused(OverloadedError("8 requests are waiting, the limit is 8")))
    error = await asyncio.wait_for(client.ended, 5)
    assert error is not None and error.status == 429
    await client.close()
