"""Calls of sequences that nobody wants any more, until their engines have answered them.

A Serve call that is cancelled writes a log line and counts as an error of the engine. A client that leaves is neither: its engine
is told to give the sequence up, and then answers the call like any other.
"""

from __future__ import annotations

import asyncio
from typing import Any

# An engine answers within a step. One that does not hangs, and then the call is cancelled after all.
_PATIENCE_S = 10.0
_PATIENCE_AT_THE_END_S = 1.0

Key = tuple[str, int]


class Departures:
    """The calls by request id and attempt; belongs to one event loop."""

    def __init__(self) -> None:
        self._calls: dict[Key, tuple[Any, asyncio.Task]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._calls

    def begin(self, key: Key, call: Any, reply: asyncio.Future) -> None:
        """See ``call`` out, whose answer ``reply`` is. The caller tells the engine; one that has yet to take the request, when it
        does."""
        self._calls[key] = call, asyncio.get_running_loop().create_task(self._see_out(key, call, reply))

    async def _see_out(self, key: Key, call: Any, reply: asyncio.Future) -> None:
        await asyncio.wait((reply,), timeout=_PATIENCE_S)
        if not reply.done():
            call.cancel()
        self._calls.pop(key, None)

    async def close(self) -> None:
        """Wait a moment for the engines, and cancel what is left."""
        if self._calls:
            await asyncio.wait([task for _, task in self._calls.values()], timeout=_PATIENCE_AT_THE_END_S)
        for call, task in self._calls.values():
            task.cancel()
            call.cancel()
        self._calls.clear()
