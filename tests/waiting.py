"""Waiting for what a test needs, instead of for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest


async def until(condition: Callable[[], Any], within_s: float) -> None:
    """Return once ``condition()`` is true; fails after ``within_s`` seconds. The event loop goes on meanwhile."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {within_s:g} s"
        await asyncio.sleep(0.002)


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true result of ``condition``; fails after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    pytest.fail(f"{what} after {timeout_s} s")
