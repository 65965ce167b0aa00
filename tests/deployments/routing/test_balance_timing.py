"""From a place that opens to the move that fills it: real words, streams and balancer under a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.delta_stream import HEARTBEAT_S, DeltaStream
from actors.scheduling.queue_state import QueueState
from cluster.outputs import AttachRequired, EngineLoad, PlacesKept
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from cluster.scaling.inputs import MAX_LOAD_AGE_S
from deployments.routing import balancer, token_streams
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStream
from tests.actors.idle_loop import IdleLoop, serve
from tests.jumping_loop import JumpingLoop

BOUND_S = 0.5
MESSAGE_S = 0.01  # of a word, a call and its answer each


class Remote:
    """A call to an engine that answers after a message there and one back."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def remote(self, *args: Any) -> asyncio.Task:
        async def call() -> Any:
            await asyncio.sleep(MESSAGE_S)
            answer = self._answer(*args)
            if asyncio.iscoroutine(answer):
                answer = await answer
            await asyncio.sleep(MESSAGE_S)
            return answer

        return asyncio.ensure_future(call())


class Streams:
    """As ``TokenStreams`` are looked at."""

    def __init__(self, streams: dict[str, TokenStream]) -> None:
        self._of = streams
        self.of = streams.get

    def __iter__(self):
        return iter(self._of.values())


async def time_to_move(
    opens_s: float, source_s: float, target_s: float, at_once: bool, asked_s: float, step_s: float = 0.0
) -> float:
    """Seconds from the place to the moment in which the full engine gives a request up. The streams of the two begin at
    ``source_s`` and ``target_s``, which sets their beats; ``asked_s`` before the place opened it was asked for one in vain.
    Its steps take ``step_s``: it looks at its queue, and answers calls, between them."""
    loop = asyncio.get_running_loop()
    opens_at, ended = loop.time() + opens_s, loop.create_future()
    choices = EngineChoices(loop.time)
    choices.set_engines({"full": "f", "other": "f"})
    given_back: list[int] = []

    def last_step_end() -> float:
        return loop.time() - ((loop.time() - opens_at - 0.3) % step_s if step_s else 0.0)

    def load_of(name: str) -> EngineLoad:
        seen_at = last_step_end() if name == "other" else loop.time()
        is_open = name == "other" and seen_at >= opens_at
        waits = 4 if name == "full" else 0
        told_after_s = loop.time() - seen_at
        load = EngineLoad(9, 9, open_places=int(is_open), num_movable=waits, oldest_wait_s=9.0, line_length=waits)
        return load._replace(sampled_at=seen_at, told_after_s=told_after_s)

    async def reserve(subscriber: str, count: int) -> PlacesKept:
        if step_s:
            await asyncio.sleep(step_s - (loop.time() - last_step_end()))
        return PlacesKept(1, 1000, 1) if loop.time() >= opens_at else PlacesKept()

    def hand_back(*args: Any) -> int:
        if not ended.done():
            ended.set_result(loop.time() - opens_at)
        return 1

    runner = SimpleNamespace(reserve=Remote(reserve), hand_back=Remote(hand_back), give_back=Remote(given_back.append))
    streams = {name: TokenStream(AttachRequired(name, runner, "f")) for name in ("full", "other")}
    one = balancer.Balancer("i", cast(Any, Streams(streams)), choices, lambda stream: False)

    async def pump(name: str, after_s: float, said: DeltaStream) -> None:
        await asyncio.sleep(after_s)
        async for items in said.messages(lambda: True, lambda: load_of(name)):
            await asyncio.sleep(MESSAGE_S)
            for item in items:
                streams[name].announced(item)  # type: ignore[arg-type]
                choices.announced(name, item)  # type: ignore[arg-type]
                one.changed()

    said = {name: DeltaStream() for name in streams}
    pumps = [asyncio.ensure_future(pump(n, s, said[n])) for n, s in (("full", source_s), ("other", target_s))]
    if at_once:
        loop.call_at(opens_at, said["other"].flush)
    loop.call_at(opens_at - asked_s, one._rest, streams["other"], False)
    try:
        took_s = await asyncio.wait_for(ended, 10)
        assert not given_back
        return took_s
    finally:
        for task in pumps:
            task.cancel()
        await one.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


def run_jumping(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What ``work()`` returns under the clock that jumps."""
    loop = JumpingLoop()
    clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balancer, "time", clock)
        patch.setattr(token_streams, "time", clock)
        try:
            return loop.run_until_complete(work())
        finally:
            loop.close()


phases = st.floats(0.0, 0.25)


@settings(deadline=None, max_examples=60)
@given(phases, phases, st.booleans(), st.one_of(st.just(1.0), st.floats(0.0, 0.3)))
def test_a_move_begins_within_half_a_second_of_the_room_whatever_the_beats(source_s, target_s, at_once, asked_s):
    took_s = run_jumping(lambda: time_to_move(2.0, source_s, target_s, at_once, asked_s))
    # A word, the call for the place with its answer, and the one to give up.
    assert 0 <= took_s <= BOUND_S + 4 * MESSAGE_S
    assert not at_once or asked_s < balancer._LOOK_AGAIN_S or took_s < 5 * MESSAGE_S


@settings(deadline=None, max_examples=30)
@given(phases, phases)
def test_an_engine_with_steps_longer_than_a_call_waits_for_is_moved_to(source_s, target_s):
    """It tells of the place at a step's end, the call comes early in the next one, and is answered when that ends."""
    step_s = 1.6
    assert step_s > balancer._CALL_TIMEOUT_S
    took_s = run_jumping(lambda: time_to_move(2.0, source_s, target_s, False, 1.0, step_s))
    assert step_s < took_s <= 2 * step_s + BOUND_S


@pytest.mark.parametrize("ends", ["other", "full"])
def test_a_stream_that_ends_before_its_next_word_takes_its_claims_with_it(ends):
    """What it said last stays what it said last; the next stream of the engine counts what was moved."""

    async def moves_of() -> list[int]:
        choices = EngineChoices(asyncio.get_running_loop().time)
        choices.set_engines({"full": "f", "other": "f"})
        asked: list[int] = []

        def reserve(subscriber: str, count: int) -> PlacesKept:
            asked.append(count)
            return PlacesKept(count, 1000, 1)

        runner = SimpleNamespace(reserve=Remote(reserve), hand_back=Remote(lambda *args: args[1]))

        def stream_of(name: str) -> TokenStream:
            stream = TokenStream(AttachRequired(name, runner, "f"))
            stream.announced(load_of(name))
            return stream

        def load_of(name: str) -> EngineLoad:
            waits = 4 if name == "full" else 0
            return EngineLoad(9, 9, open_places=4 - waits, num_movable=waits, oldest_wait_s=9.0, line_length=waits)

        streams = {name: stream_of(name) for name in ("full", "other")}
        one = balancer.Balancer("i", cast(Any, Streams(streams)), choices, lambda stream: False)
        one.changed()
        await asyncio.sleep(0.1)
        one.changed()
        assert asked == [4], "what was said last does not count the move"
        stays = "full" if ends == "other" else "other"
        streams[stays].announced(load_of(stays))
        streams[ends].alive = False
        streams[ends] = stream_of(ends)
        one.changed()
        await asyncio.sleep(0.1)
        one._told_of_grammars = dict.fromkeys(streams, 0.0)
        streams.clear()
        await asyncio.sleep(balancer.RESERVED_FOR_S)
        one.changed()
        assert not one._under_way and not one._kept and not one._told_of_grammars
        return asked

    assert run_jumping(moves_of) == [4, 4]


class LongStep(IdleLoop):
    """The loop of an engine whose four slots are taken, in a step that takes long: it looks at nothing that comes meanwhile."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(QueueState(num_running=4))
        self._now, self.began_at = now, now()

    @property
    def queue_age_s(self) -> float:  # type: ignore[override]
        return max(0.0, self._now() - self.began_at)


async def time_until_counted(num_before: int, after_s: float) -> float:
    """Seconds from a request that comes to a full engine through one ingress until another ingress leaves it its place: there are
    as many open places elsewhere as requests wait. So many waited before; the stream began ``after_s`` before."""
    loop = asyncio.get_running_loop()
    step = LongStep(loop.time)
    serving = serve(step, "full", max_num_seqs=4)
    choices = EngineChoices(loop.time)
    choices.set_engines({"full": "f", "other": "f"})
    another = DeltaStream()
    for name, stream in (("one", DeltaStream()), ("another", another)):
        serving.subscriptions.open(name, stream, list)

    async def pump() -> None:
        async for items in another.messages(lambda: True, lambda: serving.news.load_for("another")):
            await asyncio.sleep(MESSAGE_S)
            for item in items:
                choices.announced("full", item, item.told_after_s)  # type: ignore[arg-type, union-attr]
            choices.announced("other", EngineLoad(9, 9, open_places=num_before + 1))

    def come(name: str) -> asyncio.Task:
        return loop.create_task(serving.requests.generate(EngineRequest(name, [1], SamplingParams(), subscriber="one")))

    tasks = [loop.create_task(pump()), *(come(f"before{n}") for n in range(num_before))]
    await asyncio.sleep(2 * HEARTBEAT_S + after_s)
    step.began_at = loop.time()
    await asyncio.sleep(HEARTBEAT_S + 2 * MESSAGE_S)
    assert choices.open_engines(0) == {"other"}
    tasks.append(come("late"))
    step.began_at = came_at = loop.time()
    while "other" in choices.open_engines(0) and loop.time() - came_at < MAX_LOAD_AGE_S:
        await asyncio.sleep(0.001)
    took_s = loop.time() - came_at
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await serving.close()
    return took_s


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), phases)
def test_another_ingress_counts_who_waits_within_a_beat_and_the_first_one_at_once(n, after_s):
    took_s = run_jumping(lambda: time_until_counted(n, after_s))
    # Behind a word that is on its way.
    assert took_s <= 2 * MESSAGE_S + 0.002 + (HEARTBEAT_S if n else 0.0)
