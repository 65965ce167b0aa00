"""A replica that ends has its runner drained first: Serve does not know of what was sent ahead of its call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.replica import runner_watch
from deployments.replica.runner_watch import RunnerWatch


@pytest.fixture
def watch(monkeypatch) -> tuple[RunnerWatch, list[float], asyncio.Event]:
    """One that watches nothing; for how long its runner was told to drain; set once that is done."""
    monkeypatch.setattr(runner_watch, "_DRAIN_MARGIN_S", 0.05)
    told: list[float] = []
    done = asyncio.Event()

    async def drain(timeout_s: float) -> int:
        told.append(timeout_s)
        await done.wait()
        return 2

    made = cast(Any, object.__new__(RunnerWatch))
    made._engine_id, made._draining, made._drain_timeout_s = "engine-1", None, 0.1
    made._runner = SimpleNamespace(drain=SimpleNamespace(remote=drain))
    return made, told, done


@pytest.mark.parametrize("is_told_before", [False, True])
async def test_the_end_waits_until_the_runner_has_nothing(watch, is_told_before):
    watched, told, done = watch
    if is_told_before:
        watched._drain(0.1)
    ending = asyncio.create_task(watched.drained())
    await asyncio.sleep(0.02)
    assert told == [0.1] and not ending.done()
    done.set()
    await asyncio.wait_for(ending, 5)
    assert told == [0.1]


async def test_a_runner_that_does_not_end_is_not_waited_for_longer_than_it_has(watch):
    watched, _, done = watch
    await asyncio.wait_for(watched.drained(), 5)
    assert not done.is_set()
    watched._draining.cancel()
