"""An engine replica answers for a runner that it knows to be dead, before Ray does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.errors import EngineDeadError, OverloadedError
from cluster.outputs import GenerateReply, NotAdmitted, NotBegun
from cluster.replies import EngineLost, RequestRefused
from cluster.request import Followed
from deployments.ray_private import serve as ray_private
from deployments.replica.engine_replica import EngineReplica
from tests.waiting import until


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


class Runner:
    """Of calls that follow requests, what the runner's side answers."""

    def __init__(self) -> None:
        self.replies: dict[tuple[str, int], asyncio.Future] = {}
        self.aborted: list[tuple[str, int]] = []

    def follow(self, keys) -> list[asyncio.Future]:
        self.replies = {key: asyncio.get_running_loop().create_future() for key in keys}
        return list(self.replies.values())

    def abort(self, keys) -> None:
        self.aborted += keys


@pytest.fixture
async def followed(replica) -> tuple[EngineReplica, Runner]:
    """The replica, and its runner, which has been sent requests ahead."""
    runner = Runner()
    replica._info = cast(Any, SimpleNamespace(engine_id="engine-1"))
    replica._calls = cast(Any, runner)
    quiet = {"stopping": False, "node_drains": False, "suspects_hang": False}
    replica._watch = cast(Any, SimpleNamespace(**quiet))
    return replica, runner


KEYS = [("a", 0), ("b", 0), ("c", 0)]


async def test_of_several_that_came_ahead_refusals_are_told_at_once_and_answers_together(followed):
    replica, runner = followed
    replies = replica.follow(Followed("engine-1", KEYS))
    first = asyncio.ensure_future(anext(replies))
    await until(lambda: runner.replies, 5)
    runner.replies["b", 0].set_exception(OverloadedError("the queue is full"))
    ((key, refused),) = await first
    assert key == ("b", 0) and isinstance(refused, RequestRefused)
    for name in "ac":
        runner.replies[name, 0].set_result(GenerateReply(5, "length", marks={"runner": 1.0}))
    both = await anext(replies)
    assert [key for key, _ in both] == [("a", 0), ("c", 0)]
    assert all((reply.engine_id, reply.marks) == ("engine-1", {"runner": 1.0}) for _, reply in both)
    assert [reply async for reply in replies] == [] and not runner.aborted


async def test_who_is_not_waited_for_any_more_is_aborted(followed):
    replica, runner = followed
    replies = replica.follow(Followed("engine-1", KEYS))
    waiting = asyncio.create_task(anext(replies))
    await until(lambda: runner.replies, 5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert runner.aborted == KEYS


async def test_all_are_lost_with_the_runner(followed):
    replica, runner = followed
    replies = replica.follow(Followed("engine-1", KEYS))
    lost = asyncio.create_task(anext(replies))
    await until(lambda: runner.replies, 5)
    replica._death.set_result("its process has ended")
    expected = EngineLost("engine-1", "its process has ended", died=True)
    assert await lost == [(key, expected) for key in KEYS]


@pytest.mark.parametrize("leaves", ["stopping", "node_drains"])
async def test_what_an_engine_that_leaves_has_begun_runs_on(followed, leaves):
    """Its runner lets it end, or hands it over."""
    replica, runner = followed
    setattr(replica._watch, leaves, True)
    replies = replica.follow(Followed("engine-1", KEYS))
    first = asyncio.ensure_future(anext(replies))
    await until(lambda: runner.replies, 5)
    for key in KEYS:
        runner.replies[key].set_result(GenerateReply(5, "length"))
    assert [key for key, _ in await first] == KEYS
    await replies.aclose()


async def test_who_leaves_while_some_find_no_place_gives_all_places_back(followed, monkeypatch):
    replica, _ = followed
    serves = SimpleNamespace(_semaphore=asyncio.Semaphore(1), _metrics_manager=SimpleNamespace(_num_ongoing_requests=1))
    monkeypatch.setattr(ray_private, "replica_here", lambda: serves)
    replies = replica.follow(Followed("engine-1", KEYS))
    ((key, refused),) = await anext(replies)
    assert key == ("c", 0) and isinstance(refused, NotAdmitted)
    assert serves._metrics_manager._num_ongoing_requests == 2
    with pytest.raises(asyncio.CancelledError):
        await replies.athrow(asyncio.CancelledError())
    assert serves._metrics_manager._num_ongoing_requests == 1 and not serves._semaphore.locked()


async def test_an_engine_that_hangs_or_was_not_meant_has_none_of_them(followed):
    replica, runner = followed
    assert [said async for said in replica.follow(Followed("engine-2", KEYS))] == [
        [(key, NotBegun("engine-1")) for key in KEYS]
    ]
    replica._watch.suspects_hang = True
    assert [said async for said in replica.follow(Followed("engine-1", KEYS))] == [
        [(key, NotAdmitted("engine-1", "the engine does not answer", last_resort=True)) for key in KEYS]
    ]
    assert not runner.replies
