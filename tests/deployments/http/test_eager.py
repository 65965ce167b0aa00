"""Work that need not wait is done at once."""

from __future__ import annotations

import asyncio

import pytest

from deployments.http.eager import within


async def test_what_need_not_wait_is_done_in_the_same_task():
    here = asyncio.current_task()

    async def work() -> asyncio.Task | None:
        return asyncio.current_task()

    assert await within(work(), 0.0) is here


async def test_what_waits_is_bounded_and_gives_its_result():
    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        await asyncio.sleep(0)
        return "done"

    assert await within(work(0.001), 5.0) == "done"
    with pytest.raises(asyncio.TimeoutError):
        await within(work(60.0), 0.01)


@pytest.mark.parametrize("pause_s", [None, 0.0])
async def test_what_it_raises_is_raised_and_what_is_cancelled_ends(pause_s):
    async def fails() -> None:
        if pause_s is not None:
            await asyncio.sleep(pause_s)
        raise LookupError("this")

    with pytest.raises(LookupError, match="this"):
        await within(fails(), 5.0)
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(within(waits(), 60.0))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
