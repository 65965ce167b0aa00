"""Deltas on their way from a runner to one subscriber, with a heartbeat where there are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from cluster.outputs import EngineRoom, TokenDelta
from cluster.silence_clock import SilenceClock

HEARTBEAT_S = 0.5


class DeltaStream:
    """What gathers while a message is under way goes out as one. Belongs to one event loop.

    Attributes:
        lease: counts the subscriber's silence where its connection does not tell when it is gone; else None.
    """

    def __init__(self, leased: bool = False) -> None:
        self.lease = SilenceClock() if leased else None
        self.pending: list[TokenDelta] = []
        self.closed = False
        self._ready = asyncio.Event()

    def put(self, deltas: list[TokenDelta]) -> None:
        self.pending += deltas
        self._ready.set()

    def close(self) -> None:
        """End the stream once it is empty."""
        self.closed = True
        self._ready.set()

    async def messages(
        self, is_well: Callable[[], bool], room: Callable[[], EngineRoom]
    ) -> AsyncIterator[list[TokenDelta]]:
        """Yield what was put, and ``room()`` where it has changed since the last message; at least every HEARTBEAT_S seconds a
        list, which may be empty, as long as ``is_well()``. That only the number of tokens has changed, as in every step, is told
        so often, too."""
        told: EngineRoom | None = None
        told_at = 0.0
        self._beat()
        try:
            while not self.closed or self.pending:
                await self._ready.wait()
                self._ready.clear()
                deltas, self.pending = self.pending, []
                if deltas or (not self.closed and is_well()):
                    now, at = room(), time.monotonic()
                    if now != told and (at - told_at >= HEARTBEAT_S or _without_tokens(now) != _without_tokens(told)):
                        told, told_at = now, at
                        deltas.append(now.as_delta())
                    yield deltas
        finally:
            self._timer.cancel()

    def _beat(self) -> None:
        self._ready.set()
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)


def _without_tokens(room: EngineRoom | None) -> EngineRoom | None:
    return None if room is None else room._replace(num_tokens=0)
