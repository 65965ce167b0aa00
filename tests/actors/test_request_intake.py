"""Requests that are begun, called, refused and ended, in any order."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from actors.delta_stream import DeltaStream
from actors.requests import requests_ahead
from actors.scheduling.queue_state import QueueState
from cluster.errors import InvalidRequestError, StaleAttemptError
from cluster.outputs import AttachRequired, EngineLoad, NotAdmitted
from tests.actors.idle_loop import IdleLoop, serve
from tests.actors.subscriber import Subscriber, subscribed, told
from tests.waiting import until


async def test_a_request_needs_the_subscribers_stream_first(actor):
    reply = await actor.generate(subscribed("a", [1, 2]))
    assert isinstance(reply, AttachRequired) and reply.fingerprint.startswith("bireme-")
    assert (await actor.check_integrity())["num_requests_running"] == 0


async def test_cancelling_the_call_aborts_the_request_within_two_steps(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    call = asyncio.create_task(actor.generate(subscribed("a", [1], max_tokens=500)))
    await stream.wait_for("a", 3)
    call.cancel()
    await asyncio.sleep(0)
    loop, steps = actor.serving.engine_loop, actor.serving.engine_loop.num_steps
    read = loop.call(lambda engine: (engine.scheduler.kv_cache.num_available, loop.num_steps))
    available, steps_then = await asyncio.wrap_future(read)
    assert available == 64
    assert steps_then <= steps + 2


async def test_a_call_cancelled_before_the_engine_took_it_harms_nobody(actor):
    Subscriber(actor)
    await asyncio.sleep(0)
    busy = asyncio.create_task(actor.generate(subscribed("busy", [1], max_tokens=200)))
    for number in range(200):
        call = asyncio.create_task(actor.generate(subscribed(str(number), [1])))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0)
    assert told(await busy) == (200, "length")
    assert (await actor.check_integrity())["num_requests_running"] == 0
    left = {key for key, _ in actor.serving.live.unfinished()}
    assert left == set(), "what the engine never had must not be remembered"


async def test_a_request_that_cannot_begin_fails_alone_and_leaves_nothing(actor, monkeypatch):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    running = asyncio.create_task(actor.generate(subscribed("runs", [1], max_tokens=100, ignore_eos=True)))
    await stream.wait_for("runs", 1)
    free = actor.news_for("ingress").free
    with monkeypatch.context() as broken:
        broken.setattr(actor.serving.handover, "take_place", lambda *arguments: 1 / 0)
        actor.begin(subscribed("ahead", [1]))  # as the token socket does, whose connection others use, too
        with pytest.raises(ZeroDivisionError):
            await actor.generate(subscribed("called", [1]))
    with pytest.raises(ZeroDivisionError):
        await actor.generate(subscribed("ahead", [1]))  # its call, which follows
    assert actor.news_for("ingress").free == free
    assert told(await running) == (100, "length")
    assert told(await actor.generate(subscribed("called", [1], ignore_eos=True))) == (8, "length")
    assert not list(actor.serving.live.unfinished())


async def test_a_newer_attempt_ends_the_older_one_and_the_older_is_fenced(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    old = asyncio.create_task(actor.generate(subscribed("a", [5, 6], max_tokens=400)))
    await stream.wait_for("a", 4)
    known = [token for delta in stream.of("a")[:4] for token in delta.token_ids]
    reply = await actor.generate(subscribed("a", [5, 6], attempt=1, output_token_ids=known, max_tokens=8))
    assert told(reply) == (8, "length")
    assert list(reply.marks) == ["runner", "scheduled", "first_step"]
    assert reply.marks["runner"] <= reply.marks["first_step"] <= time.time()
    assert (await old).finish_reason == "abort"
    with pytest.raises(StaleAttemptError, match="attempt 0 of a is older than attempt 1"):
        await actor.generate(subscribed("a", [5, 6]))


async def test_a_refusal_reaches_the_caller_and_leaves_nothing_behind(actor):
    Subscriber(actor)
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="maximum context length is 512 tokens"):
        await actor.generate(subscribed("a", [1] * 20, max_tokens=500))
    assert (await actor.generate(subscribed("a", [1]))).num_tokens == 8


async def test_a_request_that_came_ahead_runs_at_once_and_its_call_gets_the_reply(actor):
    ahead = subscribed("a", [3, 4, 5], ignore_eos=True)
    actor.begin(ahead)
    assert not len(actor.serving.live), "nobody listens yet"
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    actor.begin(ahead)
    actor.begin(ahead)
    await stream.wait_for("a", 8)
    assert [delta.index for delta in stream.of("a")] == list(range(8))
    assert told(await actor.generate(subscribed("a", [3, 4, 5], ignore_eos=True))) == (8, "length")
    actor.begin(ahead)  # later than its call
    await asyncio.sleep(0.05)
    assert len(stream.of("a")) == 8 and ("a", 0) not in actor.serving.requests.ahead

    actor.begin(subscribed("refused", [1] * 20, max_tokens=500))
    await asyncio.sleep(0.05)
    with pytest.raises(InvalidRequestError, match="maximum context length is 512 tokens"):
        await actor.generate(subscribed("refused", [1] * 20, max_tokens=500))

    actor.begin(subscribed("left", [1], max_tokens=400))
    await stream.wait_for("left", 2)
    await actor.abort("left", 0)
    assert told(await actor.generate(subscribed("left", [1], max_tokens=400)))[1] == "abort"

    actor.begin(subscribed("cut", [1], max_tokens=400))
    call = asyncio.create_task(actor.generate(subscribed("cut", [1], max_tokens=400)))
    await stream.wait_for("cut", 2)
    call.cancel()
    await until(lambda: not list(actor.serving.live.unfinished()), 10)

    actor.begin(subscribed("moved", [1], max_tokens=400))
    await stream.wait_for("moved", 1)
    await actor.drain(0)
    assert (await actor.generate(subscribed("moved", [1], max_tokens=400))).finish_reason == "handover"
    actor.begin(subscribed("late", [1]))
    await stream.wait_for("late", 1)
    assert [(delta.token_ids, delta.finish_reason) for delta in stream.of("late")] == [([], "handover")]
    assert isinstance(await actor.generate(subscribed("late", [1])), NotAdmitted)
    await actor.check_integrity()


async def test_who_asked_ends_what_it_sent_ahead_in_the_same_breath_and_nobody_else_does(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    for name in ("left", "stays"):
        actor.begin(subscribed(name, [1], max_tokens=400))
    actor.give_up("ingress", ("left", 0))
    actor.give_up("somebody else", ("stays", 0))
    actor.give_up("ingress", ("unknown", 0))
    await until(lambda: any(delta.finish_reason == "abort" for delta in stream.of("left")), 10)
    await stream.wait_for("stays", 2)
    assert told(await actor.generate(subscribed("left", [1], max_tokens=400)))[1] == "abort"
    assert [key for key, _ in actor.serving.live.unfinished()] == [("stays", 0)]
    await actor.abort("stays", 0)
    await until(lambda: not list(actor.serving.live.unfinished()), 10)
    await actor.check_integrity()


async def test_a_request_whose_call_does_not_come_is_given_up_and_the_call_told_so(actor, monkeypatch):
    monkeypatch.setattr(requests_ahead, "CALL_PATIENCE_S", 0.2)
    monkeypatch.setattr(requests_ahead, "RETENTION_S", 2.0)
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    for name in ("long", "forgotten"):
        actor.begin(subscribed(name, [1], max_tokens=500))
    actor.begin(subscribed("short", [1], ignore_eos=True))
    await until(lambda: any(delta.finish_reason == "abort" for delta in stream.of("long")), 10)
    assert told(await actor.generate(subscribed("short", [1], ignore_eos=True))) == (8, "length")
    assert (await actor.generate(subscribed("long", [1], max_tokens=500))).finish_reason == "abort"
    await until(lambda: ("forgotten", 0) not in actor.serving.requests.ahead, 10)
    assert (await actor.check_integrity())["num_blocks_available"] == 64


@pytest.mark.parametrize("seed", range(3))
async def test_requests_calls_and_ends_come_in_any_order(actor, monkeypatch, seed):
    monkeypatch.setattr(requests_ahead, "CALL_PATIENCE_S", 0.5)
    rng = random.Random(seed)
    stream = Subscriber(actor)
    await asyncio.sleep(0)

    async def one(name: str) -> None:
        made = subscribed(name, [rng.randrange(100)], ignore_eos=True)
        steps = ["begin", "call", *rng.choice([(), ("abort",), ("cancel",), ("begin",), ("abort", "begin")])]
        rng.shuffle(steps)
        call: asyncio.Task | None = None
        for step in steps:
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01, 0.03]))
            if step == "begin":
                actor.begin(made)
            elif step == "call":
                call = asyncio.create_task(actor.generate(made))
            elif step == "abort":
                await actor.abort(name, 0)
            elif call is not None:
                call.cancel()
        assert call is not None
        await asyncio.wait((call,), timeout=20)
        if "cancel" in steps:
            return
        reply = told(call.result())
        assert reply == (8, "length") or ("abort" in steps and reply[1] == "abort")
        if "abort" not in steps:
            await stream.wait_for(name, 8)
            assert [delta.index for delta in stream.of(name)] == list(range(8)), "each token once"

    await asyncio.gather(*(one(f"r{number}") for number in range(40)))
    await until(lambda: not list(actor.serving.live.unfinished()), 10)
    assert (await actor.check_integrity())["num_blocks_available"] == 64


class Told(DeltaStream):
    """Counts how often it is told what the engine takes."""

    count = 0

    def tell(self, load: EngineLoad) -> None:
        self.count += 1


async def test_others_hear_at_once_that_a_request_finds_no_place_and_of_what_else_comes_when_it_is_time():
    serving, others = serve(IdleLoop(QueueState(open_places=1)), max_num_seqs=4), Told()
    for name, stream in (("ingress", DeltaStream()), ("other", others)):
        serving.news.subscribe(name, {}, stream)
    counts = []
    for name in ("has a place", "has none", "neither"):
        serving.requests.begin(subscribed(name, [1]))
        counts.append(others.count)
    assert counts == [0, 1, 1], "of the line others know since the second"
    await until(lambda: others.count == 2, 5)
    await serving.close()
