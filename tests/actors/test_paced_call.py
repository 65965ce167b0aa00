"""A paced call comes after whoever asks, however threads take turns, and not more often than it may."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from actors.paced_call import PacedCall
from tests.waiting import until


class Woken:
    """An event loop that counts how often it is woken."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()

    def __call__(self, function: Callable[[], None]) -> None:
        self.count += 1
        self._loop.call_soon_threadsafe(function)


async def test_the_first_who_asks_is_heard_at_once_and_the_others_together():
    woken, called_at = Woken(), []
    call = PacedCall(lambda: called_at.append(time.monotonic()), 0.5, woken)
    began = time.monotonic()
    call.ask()
    await asyncio.sleep(0)
    assert len(called_at) == 1 and called_at[0] - began < 0.4
    for _ in range(10):
        call.ask()
        await asyncio.sleep(0.001)
    await until(lambda: len(called_at) == 2, 10)
    assert called_at[1] - called_at[0] >= 0.499
    assert woken.count == 1
    await asyncio.sleep(0.6)
    assert len(called_at) == 2, "nobody asks"
    call.ask()
    await asyncio.sleep(0)
    assert len(called_at) == 3 and woken.count == 2


async def test_who_cannot_wait_is_heard_at_once_and_the_others_when_it_is_time():
    called_at: list[float] = []
    call = PacedCall(lambda: called_at.append(time.monotonic()), 0.3, Woken())
    call.ask()
    await asyncio.sleep(0)
    call.ask()
    call.now()
    assert len(called_at) == 2
    await until(lambda: len(called_at) == 3, 10)
    assert called_at[2] - called_at[0] >= 0.299


async def test_no_asking_is_lost_and_none_makes_it_come_more_often():
    """Threads change wherever they can; each waits for a call after its own asking."""
    num_calls = [0]
    each_s = 0.0005

    def function() -> None:
        num_calls[0] += 1

    call, unheard = PacedCall(function, each_s, Woken()), []
    began = time.monotonic()

    def ask() -> None:
        for _ in range(300):
            before = num_calls[0]
            call.ask()
            until = time.monotonic() + 5
            while num_calls[0] == before and time.monotonic() < until:
                time.sleep(0)
            if num_calls[0] == before:
                unheard.append(before)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(3)))
    finally:
        sys.setswitchinterval(interval)
    assert not unheard
    assert num_calls[0] <= (time.monotonic() - began) / each_s + 1
