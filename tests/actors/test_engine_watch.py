"""An engine that died, hangs or leaks is not one to go on with, and whoever waits for it learns that."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from actors.engine_actor import RunnerActor
from actors.engine_watch import EngineWatch
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError
from tests.actors.idle_loop import IdleLoop
from tests.actors.subscriber import Subscriber, subscribed
from tests.waiting import until


async def test_a_dead_loop_fails_calls_and_health(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)

    def fail(rows, kv_cache):
        raise RuntimeError("device fault")

    await asyncio.wrap_future(
        actor.serving.engine_loop.call(lambda engine: setattr(engine.executor.model, "forward", fail))
    )
    with pytest.raises(EngineDeadError, match="device fault"):
        await actor.generate(subscribed("a", [1]))
    with pytest.raises(EngineDeadError, match="device fault"):
        await actor.check_health()
    await asyncio.wait_for(stream.task, 10)


async def test_an_idle_stream_has_a_heartbeat_and_a_hung_step_ends_it(tiny_model):
    config = EngineConfig(model=str(tiny_model), load_format="dummy", num_kv_blocks=64, hang_timeout_s=0.5)
    hung = RunnerActor(config, "engine-1")
    await hung.start()
    stream = Subscriber(hung)
    await until(lambda: len(stream.loads()) >= 3, 1.6)
    release = threading.Event()
    hung.serving.engine.executor.model.forward = lambda rows, kv_cache: release.wait(20)
    call = asyncio.create_task(hung.generate(subscribed("a", [1])))
    started = asyncio.get_running_loop().time()
    with pytest.raises(EngineDeadError, match="hang_timeout_s"):
        await call
    assert asyncio.get_running_loop().time() - started < 2.0
    await asyncio.wait_for(stream.task, 5)
    with pytest.raises(EngineDeadError, match="hangs"):
        await hung.check_health()
    release.set()
    await hung.shutdown()


async def test_a_leak_ends_the_engine_as_soon_as_it_is_idle(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    await actor.generate(subscribed("a", [1, 2, 3]))
    await asyncio.wrap_future(actor.serving.engine_loop.call(lambda engine: engine.scheduler.kv_cache.allocate(1)))
    await asyncio.wait_for(stream.task, 5)
    with pytest.raises(EngineDeadError, match="died"):
        await actor.check_health()


class LongStep(IdleLoop):
    """An engine in a step that does not end."""

    def seconds_in_step(self) -> float:
        return 1.0


async def test_a_step_that_only_decodes_hangs_sooner_than_one_with_prompts():
    decodes, computes = LongStep(), LongStep()
    computes.computes_prefill = True
    hung: dict[str, list[BaseException]] = {"decodes": [], "computes": []}
    ticks: list[None] = []
    watches = [EngineWatch(name, cast(Any, loop), 0.3) for name, loop in (("decodes", decodes), ("computes", computes))]
    for watch, errors in zip(watches, hung.values(), strict=True):
        watch.begin(lambda: ticks.append(None), errors.append)
    await until(lambda: hung["decodes"], 5)
    assert not watches[0].is_well() and watches[1].is_well()
    with pytest.raises(EngineDeadError, match="hangs"):
        watches[0].check()
    watches[1].check()
    assert len(ticks) > 2
    computes.computes_prefill = False
    await until(lambda: hung["computes"], 5)
    assert [len(errors) for errors in hung.values()] == [1, 1]


async def test_who_watches_no_more_is_told_nothing():
    told: list[str] = []
    for name in ("ended", "goes on"):
        watch = EngineWatch(name, cast(Any, LongStep()), 0.3)
        watch.begin(lambda: None, lambda error, name=name: told.append(name))  # type: ignore[misc]
        if name == "ended":
            watch.close()
    await until(lambda: "goes on" in told, 5)
    await asyncio.sleep(0)
    assert told == ["goes on"]
