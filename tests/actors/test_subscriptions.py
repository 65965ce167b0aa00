"""What an engine's thread says comes once and in order to whoever attaches meanwhile, and into the actor's books."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.outputs import ENGINE_LEAVES, FINISH_LENGTH, EngineLoad, PlainTokens, StepOutput, StreamItem, TokenDelta
from cluster.process.silence_clock import SilenceClock
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams


class Listener:
    """A stream that keeps what was put, and tells whether it was flushed since."""

    def __init__(self) -> None:
        self.lease: SilenceClock | None = None
        self.said: list[StreamItem] = []
        self.is_flushed = True
        self.is_closed = False

    def put(self, items: Sequence[StreamItem]) -> None:
        self.said += items
        self.is_flushed = False

    def flush(self) -> None:
        self.is_flushed = True

    def tell(self, load: EngineLoad) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def tokens(self) -> list[tuple[int, int]]:
        """(index, token) of what came, in that order."""
        said: list[tuple[int, int]] = []
        for item in self.said:
            if isinstance(item, PlainTokens):
                said += zip(item.indices, item.token_ids, strict=True)
            elif isinstance(item, TokenDelta):
                said += [(item.index + i, token) for i, token in enumerate(item.token_ids)]
        return said


def new_actor() -> RunnerActor:
    actor = RunnerActor(EngineConfig(model="m", load_format="dummy"), "engine")
    actor._loop, actor._info = asyncio.get_running_loop(), cast(Any, SimpleNamespace(fingerprint="f"))
    actor._engine_loop = cast(Any, SimpleNamespace(take_queue_time=lambda _: 0.0))
    return actor


def open_request(
    actor: RunnerActor, request_id: str = "a", subscriber: str = "ingress", token_ids: list[int] | None = None
) -> asyncio.Future:
    done: asyncio.Future = actor._loop.create_future()
    live = actor._live.open(EngineRequest(request_id, [1], SamplingParams(), subscriber=subscriber), done)
    live.follow(token_ids or [1])
    return done


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Threads change wherever they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("seed", range(5))
async def test_who_attaches_while_tokens_are_said_misses_none_and_gets_none_twice(seed):
    actor, rng, num_tokens = new_actor(), random.Random(seed), 3000
    token_ids = [1]
    done = open_request(actor, token_ids=token_ids)

    def engine() -> None:
        for index in range(num_tokens - 1):
            token_ids.append(index + 5)
            if index % 7:
                output = StepOutput()
                output.plain["ingress"] = PlainTokens(["a"], [0], [index], [index + 5])
            else:
                output = StepOutput([TokenDelta("a", 0, index, [index + 5])])
            actor._subscriptions.publish(output)
        token_ids.append(4)
        actor._subscriptions.publish(StepOutput([TokenDelta("a", 0, num_tokens - 1, [4], None, FINISH_LENGTH)]))

    thread = threading.Thread(target=engine)
    got: list[tuple[int, int]] = []
    listener = Listener()
    actor.subscribe("ingress", {"a": 0}, listener)
    thread.start()
    while not done.done():
        await asyncio.sleep(rng.choice((0, 0, 0.0003)))
        before, listener = listener, Listener()
        with actor._subscriptions._lock:  # what an ingress has had when its stream breaks
            got += before.tokens()
            actor.subscribe("ingress", {"a": len(got)}, listener)
        assert before.is_closed
    thread.join()
    # An answer's last word is said again to who asks what follows it.
    got += [said for said in listener.tokens() if said[0] == len(got)]
    assert got == [(i, i + 5) for i in range(num_tokens - 1)] + [(num_tokens - 1, 4)]
    assert listener.is_flushed
    assert (await done).num_tokens == num_tokens
    actor.subscribe("ingress", {"a": 0}, again := Listener())
    assert again.tokens() == got, "the books have all of it"


async def test_plain_tokens_wake_no_loop_until_many_are_unread():
    actor = new_actor()
    open_request(actor)
    actor.subscribe("ingress", {}, Listener())
    woken: list[int] = []
    actor._subscriptions._ask_to_read = lambda: woken.append(len(actor._subscriptions._unread))
    actor._subscriptions.publish(StepOutput([TokenDelta("a", 0, 0, [5])]))
    assert woken == [1]
    for index in range(1, 128):
        assert woken == [1]
        output = StepOutput()
        output.plain["ingress"] = PlainTokens(["a"], [0], [index], [5])
        actor._subscriptions.publish(output)
    assert woken == [1, 128]


async def test_steps_that_say_more_wake_the_loop_once_and_are_read_together():
    actor = new_actor()
    done = open_request(actor)
    actor.subscribe("ingress", {}, Listener())
    woken: list[None] = []
    on_loop = actor._call_on_loop
    actor._keeping_up._on_loop = lambda function: [woken.append(None), on_loop(function)]  # type: ignore[func-returns-value]
    actor._is_well = lambda: False  # type: ignore[method-assign]  # nothing but the books
    for index in range(50):
        finish = FINISH_LENGTH if index == 49 else None
        await asyncio.to_thread(
            actor._subscriptions.publish, StepOutput([TokenDelta("a", 0, index, [5], None, finish)])
        )
    said_by = time.monotonic()
    await asyncio.sleep(0.02)
    assert (await asyncio.wait_for(done, 5)).num_tokens == 50
    assert len(woken) <= 2
    first_at = actor._live._of["a", 0].first_at
    assert first_at is not None and first_at < said_by, "as the engine said it, not as it was read"


async def test_what_nobody_asked_for_is_said_to_nobody():
    actor = new_actor()
    open_request(actor, "a", "one")
    one, other = Listener(), Listener()
    actor.subscribe("one", {}, one)
    actor.subscribe("other", {}, other)
    actor._subscriptions.publish(StepOutput([TokenDelta("a", 0, 0, [5]), TokenDelta("unknown", 0, 0, [6])]))
    assert one.tokens() == [(0, 5)] and one.is_flushed and not other.said
    actor.unsubscribe("one", one)
    actor._subscriptions.publish(StepOutput([TokenDelta("a", 0, 1, [5])]))
    assert one.tokens() == [(0, 5)]


async def test_a_stream_that_cannot_say_something_ends_alone(caplog):
    actor = new_actor()
    open_request(actor, "a", "one")
    open_request(actor, "b", "other")
    broken, other = Listener(), Listener()
    actor.subscribe("one", {}, broken)
    actor.subscribe("other", {}, other)
    broken.put = lambda items: 1 / 0  # type: ignore[method-assign, assignment]
    said = StepOutput([TokenDelta("a", 0, 0, [5]), TokenDelta("b", 0, 0, [6])])
    await asyncio.to_thread(actor._subscriptions.publish, said)
    assert other.tokens() == [(0, 6)]
    await asyncio.sleep(0)
    assert broken.is_closed and not other.is_closed and "ZeroDivisionError" in caplog.text


async def test_who_attaches_to_an_engine_that_leaves_is_told():
    actor = new_actor()
    actor._draining = cast(Any, SimpleNamespace())
    actor.subscribe("ingress", {}, listener := Listener())
    assert listener.said == [ENGINE_LEAVES] and listener.is_flushed
