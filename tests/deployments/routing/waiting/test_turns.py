"""Requests and calls take turns at the event loop."""

from __future__ import annotations

import asyncio

import pytest

from deployments.routing.waiting import turns
from deployments.routing.waiting.turns import Turns


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_is_alone_waits_for_nothing():
    taken = Turns()
    for _ in range(3):
        begun = asyncio.ensure_future(taken.begin())
        await passes(1)
        assert begun.done()
        await passes(1)


async def test_requests_begin_one_each_pass_in_order_and_calls_follow_them():
    taken, seen = Turns(), []

    async def begin(name: str) -> None:
        await taken.begin()
        seen.append(name)

    tasks = [asyncio.create_task(begin(f"begin {number}")) for number in range(4)]
    for number in range(3):
        taken.add_call(lambda number=number: seen.append(f"call {number}"))
    at_pass = []
    for _ in range(12):
        await passes(1)
        at_pass.append(len(seen))
    assert seen == [f"begin {number}" for number in range(4)] + [f"call {number}" for number in range(3)]
    assert max(after - before for before, after in zip([0, *at_pass], at_pass)) == 1
    await asyncio.gather(*tasks)


async def test_a_call_does_not_wait_for_ever_behind_requests(monkeypatch):
    monkeypatch.setattr(turns, "_LONGEST_S", 0.0)
    taken, seen = Turns(), []
    for _ in range(2):
        await taken.begin()  # takes this pass and the next
    waiting = [asyncio.create_task(taken.begin()) for _ in range(20)]
    taken.add_call(lambda: seen.append("call"))
    await passes(3)
    assert seen == ["call"] and not all(task.done() for task in waiting)
    await asyncio.gather(*waiting)


async def test_who_leaves_takes_no_turn():
    taken = Turns()
    _, leaver, stayer = (asyncio.create_task(taken.begin()) for _ in range(3))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait_for(stayer, 5)
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_calls_go_one_each_pass_and_none_after_the_end():
    taken, seen = Turns(), []
    taken.add_call(lambda: seen.append(0))
    taken.add_call(lambda: seen.append(1))
    await passes(3)
    assert seen == [0, 1]
    taken.add_call(lambda: seen.append(2))
    taken.close()
    await passes(3)
    assert seen == [0, 1]
