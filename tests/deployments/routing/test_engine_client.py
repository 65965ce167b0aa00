"""A request between ingress and engine: taken, refused, and told of."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest

from cluster.api_errors import ApiError
from cluster.errors import OverloadedError
from cluster.journal import JournalEntry
from cluster.outputs import AttachRequired, EngineLoad, GenerateReply, TokenDelta
from cluster.replies import RequestRefused
from cluster.sampling_params import SamplingParams
from deployments.answers.generation import Generation
from deployments.routing.engine_client import EngineClient
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.submissions import CountedByTenant
from deployments.routing.waiting import place_line
from tests.deployments.routing.scripted_engine import Client, Engine, answer, choice, sent
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


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


async def test_tokens_that_came_before_an_error_are_read_before_it():
    output = SimpleNamespace(finish_reason=None, push=lambda delta: "text")
    generation = Generation(client := Client(Engine()), [choice(client, answer(2), output)])
    generation._put(generation.choices[0], TokenDelta("r", 0, 0, [7]))
    generation.fail(ApiError(503, "gone"))
    assert await generation.read() == {0: "text"}
    with pytest.raises(ApiError, match="gone"):
        await generation.read()


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
    await until(lambda: choices.token_weight("e") == 110, 5)
    engine.messages.put_nowait([TokenDelta("r", 0, 0, []), EngineLoad(3, 8, 0, 101, uncomputed_tokens=1)])
    await until(lambda: client.stream.load == EngineLoad(3, 8, 0, 101, uncomputed_tokens=1), 5)
    assert choices.token_weight("e") == 101 + 9 * 1
    await client.close()


async def test_while_all_engines_are_gone_as_many_requests_wait_as_they_took():
    choices = EngineChoices()
    client = Client(Engine(), choices=choices, idle_room=EngineLoad(free=2, max_queued=2), max_engines=1)

    def num_taken() -> int:
        unplaced = client._submissions.unplaced = CountedByTenant()
        with contextlib.suppress(ApiError):
            while len(unplaced) < 100:
                client.check_room(1)
                unplaced.add(Submission(answer(1), lambda _: None, lambda _: None))
        return len(unplaced)

    assert num_taken() == 2
    choices.set_engines({"a": "f", "b": "f", "c": "f"})
    choices.set_engines({})
    assert num_taken() == 6
