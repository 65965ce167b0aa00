"""What an engine's thread says comes once and in order to whoever attaches meanwhile, and into the actor's books."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from actors.paced_call import PacedCall
from actors.requests.live_requests import LiveRequest, LiveRequests
from actors.serving_engine import ServingEngine
from actors.subscriptions import Subscriptions
from cluster.outputs import FINISH_LENGTH, EngineLoad, PlainTokens, StepOutput, StreamItem, TokenDelta
from cluster.process.silence_clock import SilenceClock
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from tests.actors.idle_loop import IdleLoop, serve


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


@pytest.fixture
async def serving() -> AsyncIterator[ServingEngine]:
    made = serve(IdleLoop())
    yield made
    await made.close()


def open_request(
    live: LiveRequests, request_id: str = "a", subscriber: str = "ingress", token_ids: list[int] | None = None
) -> LiveRequest:
    done: asyncio.Future = asyncio.get_running_loop().create_future()
    opened = live.open(EngineRequest(request_id, [1], SamplingParams(), subscriber=subscriber), done)
    opened.follow(token_ids or [1])
    return opened


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Threads change wherever they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("seed", range(5))
async def test_who_attaches_while_tokens_are_said_misses_none_and_gets_none_twice(serving, seed):
    rng, num_tokens = random.Random(seed), 3000
    token_ids = [1]
    done = open_request(serving.live, token_ids=token_ids).done

    def engine() -> None:
        for index in range(num_tokens - 1):
            token_ids.append(index + 5)
            if index % 7:
                output = StepOutput()
                output.plain["ingress"] = PlainTokens(["a"], [0], [index], [index + 5])
            else:
                output = StepOutput([TokenDelta("a", 0, index, [index + 5])])
            serving.subscriptions.publish(output)
        token_ids.append(4)
        serving.subscriptions.publish(StepOutput([TokenDelta("a", 0, num_tokens - 1, [4], None, FINISH_LENGTH)]))

    thread = threading.Thread(target=engine)
    got: list[tuple[int, int]] = []
    listener = Listener()
    serving.news.subscribe("ingress", {"a": 0}, listener)
    thread.start()
    while not done.done():
        await asyncio.sleep(rng.choice((0, 0, 0.0003)))
        before, listener = listener, Listener()
        with serving.subscriptions._lock:  # what an ingress has had when its stream breaks
            got += before.tokens()
            serving.news.subscribe("ingress", {"a": len(got)}, listener)
        assert before.is_closed
    thread.join()
    # An answer's last word is said again to who asks what follows it.
    got += [said for said in listener.tokens() if said[0] == len(got)]
    assert got == [(i, i + 5) for i in range(num_tokens - 1)] + [(num_tokens - 1, 4)]
    assert listener.is_flushed
    assert (await done).num_tokens == num_tokens
    serving.news.subscribe("ingress", {"a": 0}, again := Listener())
    assert again.tokens() == got, "the books have all of it"


async def test_plain_tokens_wake_no_loop_until_many_are_unread():
    woken: list[int] = []
    subscriptions = Subscriptions(lambda key: "ingress", lambda: woken.append(num_said), lambda function: None)
    subscriptions.open("ingress", Listener(), list)
    num_said = 1
    subscriptions.publish(StepOutput([TokenDelta("a", 0, 0, [5])]))
    assert woken == [1]
    for index in range(1, 128):
        assert woken == [1]
        output = StepOutput()
        output.plain["ingress"] = PlainTokens(["a"], [0], [index], [5])
        num_said += 1
        subscriptions.publish(output)
    assert woken == [1, 128]


async def test_steps_that_say_more_wake_the_loop_once_and_are_read_together():
    loop, live, woken = asyncio.get_running_loop(), LiveRequests(), []

    def on_loop(function: Callable[[], None]) -> None:
        woken.append(function)
        loop.call_soon_threadsafe(function)

    def read() -> None:
        for at, output in subscriptions.take():
            for delta in output.deltas:
                live.deliver(delta, at=at)

    subscriptions = Subscriptions(live.subscriber, PacedCall(read, 0.01, on_loop).ask, on_loop)
    opened = open_request(live)
    for index in range(50):
        finish = FINISH_LENGTH if index == 49 else None
        await asyncio.to_thread(subscriptions.publish, StepOutput([TokenDelta("a", 0, index, [5], None, finish)]))
    said_by = time.monotonic()
    await asyncio.sleep(0.02)
    assert (await asyncio.wait_for(opened.done, 5)).num_tokens == 50
    assert len(woken) <= 2
    assert opened.first_at is not None and opened.first_at < said_by, "as the engine said it, not as it was read"


async def test_what_nobody_asked_for_is_said_to_nobody(serving):
    open_request(serving.live, "a", "one")
    one, other = Listener(), Listener()
    serving.news.subscribe("one", {}, one)
    serving.news.subscribe("other", {}, other)
    serving.subscriptions.publish(StepOutput([TokenDelta("a", 0, 0, [5]), TokenDelta("unknown", 0, 0, [6])]))
    assert one.tokens() == [(0, 5)] and one.is_flushed and not other.said
    serving.news.unsubscribe("one", one)
    serving.subscriptions.publish(StepOutput([TokenDelta("a", 0, 1, [5])]))
    assert one.tokens() == [(0, 5)]


async def test_a_stream_that_cannot_say_something_ends_alone(serving, caplog):
    open_request(serving.live, "a", "one")
    open_request(serving.live, "b", "other")
    broken, other = Listener(), Listener()
    serving.news.subscribe("one", {}, broken)
    serving.news.subscribe("other", {}, other)
    broken.put = lambda items: 1 / 0  # type: ignore[method-assign, assignment]
    said = StepOutput([TokenDelta("a", 0, 0, [5]), TokenDelta("b", 0, 0, [6])])
    await asyncio.to_thread(serving.subscriptions.publish, said)
    assert other.tokens() == [(0, 6)]
    await asyncio.sleep(0)
    assert broken.is_closed and not other.is_closed and "ZeroDivisionError" in caplog.text
