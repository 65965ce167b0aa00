"""Sequences that wait for room."""

from __future__ import annotations

import asyncio
import time

from deployments.routing.waiting import place_line
from deployments.routing.waiting.place_line import PlaceLine
from tests.waiting import until


async def test_as_many_go_as_there_is_room_for_and_in_order(monkeypatch):
    monkeypatch.setattr(place_line, "_ASK_ANYWAY_S", 60.0)
    line, went = PlaceLine(), []
    tasks = [asyncio.create_task(_wait(line, number, went)) for number in range(6)]
    await asyncio.sleep(0)
    for count, gone in ((0, []), (-1, []), (2, [0, 1])):
        line.go(count)
        await asyncio.sleep(0.01)
        assert went == gone
    tasks[2].cancel()
    await asyncio.sleep(0.01)
    line.go(1)
    await asyncio.sleep(0.01)
    assert (went, len(line)) == ([0, 1, 3], 2)
    line.go(9)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (went, len(line)) == ([0, 1, 3, 4, 5], 0)


async def test_without_an_announcement_one_at_a_time_asks_an_engine(monkeypatch):
    monkeypatch.setattr(place_line, "_ASK_ANYWAY_S", 0.1)
    line, went = PlaceLine(), []
    started = time.monotonic()
    tasks = [asyncio.create_task(_wait(line, number, went)) for number in range(40)]
    await until(lambda: len(went) >= 4, 5)
    assert went == [0, 1, 2, 3]
    assert time.monotonic() - started > 0.3
    line.go(40)
    await asyncio.gather(*tasks)


async def _wait(line: PlaceLine, number: int, went: list[int]) -> None:
    await line.wait()
    went.append(number)
