"""An engine replica answers for a runner that it knows to be dead, before Ray does."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import EngineDeadError
from deployments.replica.engine_replica import EngineReplica


@pytest.fixture
async def replica() -> EngineReplica:
    """As far as calls on its runner go; the rest of it needs a cluster."""
    server = object.__new__(EngineReplica)
    server._engine_id = "engine-1"
    server._death = asyncio.get_running_loop().create_future()
    return server


async def answered(result: object, after_s: float = 0.0) -> object:
    await asyncio.sleep(after_s)
    return result


async def test_calls_that_wait_for_a_dead_runner_are_answered_at_once(replica):
    forever = [asyncio.get_running_loop().create_future() for _ in range(3)]
    calls = [asyncio.create_task(replica._unless_dead(call)) for call in forever]
    await asyncio.sleep(0.01)
    replica._death.set_result("its process has ended")
    for call in calls:
        with pytest.raises(EngineDeadError, match="its process has ended"):
            await asyncio.wait_for(call, 1)
    assert all(call.cancelled() for call in forever)


async def test_a_reply_is_passed_on_and_so_is_the_end_of_whoever_waits_for_it(replica):
    assert await replica._unless_dead(answered(5)) == 5
    never = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(replica._unless_dead(never))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert never.cancelled()
    arrived = asyncio.get_running_loop().create_future()
    arrived.set_result(6)
    replica._death.set_result("gone")
    assert await replica._unless_dead(arrived) == 6
