"""Coroutines that mostly need not wait: no task is made of those that do not, as Python 3.12 has it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def begin(work: Awaitable[None]) -> asyncio.Task | None:
    """Do ``work`` as far as it goes without waiting, as an eager task of Python 3.12 does; None if that is all of it. What it
    raises, the task raises."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return None
    except Exception as error:
        return asyncio.ensure_future(_raise(error))
    return asyncio.ensure_future(_rest(steps, waits_for))


async def within(work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
    """As ``asyncio.wait_for``: what is done without waiting has no bound."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as end:
        return end.value
    return await asyncio.wait_for(_rest(steps, waits_for), seconds)


async def _raise(error: Exception) -> None:
    raise error


async def _rest(steps: Generator[Any, None, Any], waits_for: Any) -> Any:
    return await _Steps(steps, waits_for)


class _Steps:
    """What is left of a coroutine that waits for something."""

    def __init__(self, steps: Generator[Any, None, Any], waits_for: Any) -> None:
        self._steps, self._waits_for = steps, waits_for

    def __await__(self) -> Generator[Any, None, Any]:
        waits_for = self._waits_for
        while True:
            try:
                yield waits_for
            except BaseException as error:  # cancelled, or what was waited for failed
                going_on = functools.partial(self._steps.throw, error)
            else:
                going_on = functools.partial(next, self._steps)
            try:
                waits_for = going_on()
            except StopIteration as end:
                return end.value
