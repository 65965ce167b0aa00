"""Corners of the way between ingress and engine, with a few lines in the engine's place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.serve import context as serve_context

from cluster.api_errors import ApiError
from cluster.errors import OverloadedError
from cluster.journal import JournalEntry
from cluster.outputs import AttachRequired, EngineLoad, GenerateReply, TokenDelta
from cluster.replies import EngineLost, RequestRefused
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from deployments.http.choice import Choice
from deployments.http.generation import Generation
from deployments.metrics.ingress_metrics import SequenceTimes
from deployments.routing import attempts, departures, place_line, token_streams
from deployments.routing.engine_choices import EngineChoices
from deployments.routing.engine_client import EngineClient
from deployments.routing.submission import Submission
from deployments.routing.token_streams import TokenStream, TokenStreams
from tests.waiting import until


class DyingEngine:
    """Handle, replica and runner in one: it answers the call and is gone before its token stream was opened."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __getattr__(self, name: str) -> DyingEngine:
        return self

    def remote(self, *arguments) -> asyncio.Future:
        if not arguments:  # where is the token socket?
            return asyncio.ensure_future(self._gone())
        self.num_calls += 1
        reply = AttachRequired("e", self, "f") if self.num_calls == 1 else GenerateReply(1, "length", "e")
        return asyncio.ensure_future(asyncio.sleep(0, reply))

    async def _gone(self) -> None:
        raise OSError("no such socket")


def entry(**fields) -> JournalEntry:
    return JournalEntry("r", [1], SamplingParams(max_tokens=1), **fields)


async def test_a_reply_whose_token_stream_never_opened_is_another_attempt_at_once():
    engine, failed = DyingEngine(), asyncio.get_running_loop().create_future()
    client = EngineClient(engine, EngineChoices(), max_attempts=2)
    started = time.monotonic()
    client.submit(entry(), deliver=lambda delta: None, fail=failed.set_result)
    error = await asyncio.wait_for(failed, 20)
    await client.close()
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (503, "engine_dead")
    # The first attempt waits for the stream's own attempts to open, the second finds it gone.
    assert time.monotonic() - started < 5
    assert client.events.counts["bireme_request_attempts"] == 2


class Remote:
    """A remote method that is called here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function

    def options(self, **options) -> Remote:
        return self


class Engine:
    """Replica and runner in one, on another node. A test answers its calls and says what comes on its token stream.

    Attributes:
        calls: requests that were submitted, each with the reply that is to be set.
        callers: the HTTP request that each call belongs to, as Serve sees it; none has an empty name.
        aborted: request id and attempt of each abort, in order.
        messages: what the token stream carries next.
    """

    def __init__(self, engine_id: str = "e", fingerprint: str = "f") -> None:
        self.engine_id, self.fingerprint = engine_id, fingerprint
        self.calls: list[tuple[EngineRequest, asyncio.Future]] = []
        self.callers: list[str] = []
        self.aborted: list[tuple[str, int]] = []
        self.messages: asyncio.Queue[list[TokenDelta]] = asyncio.Queue()
        self.attached = False
        self.generate = Remote(self._generate)
        self.abort = Remote(lambda *key: self.aborted.append(key))
        self.token_socket = Remote(lambda: asyncio.sleep(0, ("another node", "")))
        self.attach = Remote(self._attach)
        self.renew = self.detach = Remote(lambda subscriber: None)

    def _generate(self, request: EngineRequest, fingerprint: str, last_resort: bool) -> asyncio.Future:
        reply = asyncio.get_running_loop().create_future()
        if self.attached:
            self.calls.append((request, reply))
            self.callers.append(serve_context._get_serve_request_context()._internal_request_id)
        else:
            reply.set_result(AttachRequired(self.engine_id, self, self.fingerprint))
        return reply

    async def _attach(self, subscriber: str, resume: dict[str, int], leased: bool) -> AsyncIterator[Any]:
        self.attached = True
        while True:
            yield asyncio.sleep(0, await self.messages.get())

    async def called(self, times: int, within_s: float = 5.0) -> tuple[EngineRequest, asyncio.Future]:
        """Wait for a call, and return it."""
        await until(lambda: len(self.calls) >= times, within_s)
        return self.calls[times - 1]


class Client(EngineClient):
    """A client, and what it told of its one sequence.

    Attributes:
        tokens: delivered.
        ended: the error, or None once the last token came.
    """

    def __init__(self, handle: Any, **options: Any) -> None:
        super().__init__(handle, **{"choices": EngineChoices(), "max_attempts": 3, **options})
        self.tokens: list[int] = []
        self.ended: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()

    def start(self, journal_entry: JournalEntry) -> Submission:
        return self.submit(journal_entry, self._deliver, self.ended.set_result)

    def _deliver(self, delta: TokenDelta) -> None:
        self.tokens += delta.token_ids
        if delta.finish_reason is not None:
            self.ended.set_result(None)

    @property
    def stream(self) -> TokenStream:
        return self.streams[0]


def sent(request_id: str) -> EngineRequest:
    return EngineRequest(request_id, [1], SamplingParams())


def choice(client: Client, journal_entry: JournalEntry, output: Any) -> Choice:
    return Choice(0, journal_entry, output, SequenceTimes(client.metrics, 0.0))


def stream_of(client: Client) -> TokenStream | None:
    """Of the engine that is known to have the one request."""
    submission = client._submissions.of("r")
    assert submission is not None
    return submission.stream


def answer(max_tokens: int, **fields) -> JournalEntry:
    return JournalEntry("r", [1], SamplingParams(max_tokens=max_tokens), **fields)


@pytest.fixture(autouse=True)
def _node(monkeypatch):
    """Where this process is, which Ray knows only of a cluster."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "this node"))


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


async def test_tokens_that_came_before_an_error_are_read_before_it():
    output = SimpleNamespace(finish_reason=None, push=lambda delta: "text")
    generation = Generation(client := Client(Engine()), [choice(client, answer(2), output)])
    generation._put(generation.choices[0], TokenDelta("r", 0, 0, [7]))
    generation.fail(ApiError(503, "gone"))
    assert await generation.read() == {0: "text"}
    with pytest.raises(ApiError, match="gone"):
        await generation.read()


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


@pytest.fixture
def choices() -> EngineChoices:
    """One engine that the router knows."""
    made = EngineChoices()
    made.set_engines({"e": "f"})
    return made


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


def generation(client: Client, name: str, count: int) -> Generation:
    entries = [JournalEntry(f"{name}{i}", [1], SamplingParams(max_tokens=1)) for i in range(count)]
    outputs = [SimpleNamespace(finish_reason=None, push=lambda delta: "", token_ids=[]) for _ in entries]
    return Generation(client, [choice(client, entry, output) for entry, output in zip(entries, outputs)])


async def test_sequences_are_taken_together_and_have_their_places_at_once(choices):
    engine = Engine()
    client = Client(engine, choices=choices)
    client._streams.attach(AttachRequired("e", engine, "f"))
    engine.messages.put_nowait([EngineLoad(4, 8)])
    await until(lambda: client.stream.load, 5)
    generation(client, "a", 3).start()
    # No engine has heard of these yet.
    for count in (2, 9):
        with pytest.raises(ApiError, match="7 requests are waiting, the limit is 8") as refused:
            generation(client, "b", count).start()
        assert refused.value.status == 429
    generation(client, "c", 1).start()
    await engine.called(4)
    engine.messages.put_nowait([TokenDelta(call[0].request_id, 0, 0, []) for call in engine.calls])
    engine.messages.put_nowait([EngineLoad(2, 8)])
    await until(lambda: client.stream.load == EngineLoad(2, 8), 5)
    generation(client, "d", 2).start()
    await engine.called(6)
    await client.close()


async def test_a_part_that_an_engine_refuses_waits_until_there_is_room(choices, monkeypatch):
    monkeypatch.setattr(place_line, "_ASK_ANYWAY_S", 60.0)
    engine = Engine()
    client = Client(engine, choices=choices)
    client._streams.attach(AttachRequired("e", engine, "f"))
    engine.messages.put_nowait([EngineLoad(2, 8)])
    await until(lambda: client.stream.load, 5)
    started = generation(client, "a", 2)
    started.start()
    await engine.called(2)
    # Another ingress was faster.
    engine.messages.put_nowait([EngineLoad(0, 8)])
    await until(lambda: client.stream.load == EngineLoad(0, 8), 5)
    for _, reply in engine.calls:
        reply.set_result(RequestRefused(OverloadedError("8 requests are waiting, the limit is 8")))
    await asyncio.sleep(0.5)
    assert len(engine.calls) == 2
    engine.messages.put_nowait([EngineLoad(1, 8, 1)])
    await engine.called(3)
    await asyncio.sleep(0.2)
    assert len(engine.calls) == 3
    assert sum(client.events.counts.values()) == 0
    assert started._error is None
    await client.close()


async def test_what_engines_announce_and_take_is_told_to_the_router(choices):
    engine = Engine()
    client = Client(engine, choices=choices)
    client._streams.attach(AttachRequired("e", engine, "f"))
    client.start(answer(1))
    await engine.called(1)
    choices.chose(sent("r"), "e")
    engine.messages.put_nowait([EngineLoad(4, 8, 0, 100)])
    await until(lambda: choices.num_tokens("e") == 101, 5)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, []), EngineLoad(3, 8, 0, 101)])
    await until(lambda: client.stream.load == EngineLoad(3, 8, 0, 101), 5)
    assert choices.num_tokens("e") == 101
    await client.close()


async def test_early_streams_go_on_after_an_error_that_nobody_expected(choices):
    engine, calls = Engine(), []

    def find_runner(engine_id: str) -> Engine:
        calls.append(engine_id)
        if len(calls) == 1:
            raise ConnectionError("the cluster's store does not answer")
        return engine

    client = Client(engine, choices=choices)
    client.attach_early(find_runner)
    await until(lambda: client.streams, 5)
    assert calls == ["e", "e"]
    await client.close()


async def test_an_engine_that_falls_silent_gets_nothing_new_before_it_is_given_up(monkeypatch):
    # More than one late look at the clock counts for.
    monkeypatch.setattr(token_streams, "_SUSPECT_S", 0.6)
    choices = EngineChoices()
    lost: list[str] = []
    engine = Engine()
    streams = TokenStreams(
        "s", choices, lambda *_: None, dict, lambda stream, why: lost.append(why), hang_timeout_s=60.0
    )
    streams.attach(AttachRequired("e", engine, "f"))
    speaking = asyncio.create_task(_speak(engine))
    await asyncio.sleep(0.8)
    assert not choices.is_avoided("e")
    speaking.cancel()
    await until(lambda: choices.is_avoided("e"), 5)
    await asyncio.sleep(0.8)
    assert choices.is_avoided("e")
    speaking = asyncio.create_task(_speak(engine))
    await until(lambda: not choices.is_avoided("e"), 5)
    speaking.cancel()
    await streams.close()
    assert not lost


async def _speak(engine: Engine) -> None:
    while True:
        engine.messages.put_nowait([])
        await asyncio.sleep(0.05)
