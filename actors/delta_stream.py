"""Deltas on their way from a runner to one subscriber, with a heartbeat where there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from cluster.outputs import EngineLoad, StreamItem
from cluster.process.silence_clock import SilenceClock

# Half of ``MAX_LOAD_AGE_S``: a beat that is late by its own length, on a busy machine, leaves nobody without knowledge.
HEARTBEAT_S = 0.25


class DeltaStream:
    """What gathers while a message is under way goes out as one. Belongs to one event loop.

    Attributes:
        lease: counts the subscriber's silence where its connection does not tell when it is gone; else None.
    """

    def __init__(self, leased: bool = False) -> None:
        self.lease = SilenceClock() if leased else None
        self.pending: list[StreamItem] = []
        self.closed = False
        self._ready = asyncio.Event()
        self._beats = False

    def put(self, items: Sequence[StreamItem]) -> None:
        self.pending += items
        self._ready.set()

    def close(self) -> None:
        """End the stream once it is empty."""
        self.closed = True
        self._ready.set()

    async def messages(
        self, is_well: Callable[[], bool], load: Callable[[], EngineLoad]
    ) -> AsyncGenerator[list[StreamItem], None]:
        """Yield what was put, and ``load()`` where the engine takes more or less than the last message said, or what that said of
        the queue was of before a long step; at least every HEARTBEAT_S seconds, as long as ``is_well()``."""
        told: EngineLoad | None = None
        self._beat()
        try:
            while not self.closed or self.pending:
                await self._ready.wait()
                self._ready.clear()
                deltas, self.pending = self.pending, []
                if deltas or (not self.closed and is_well()):
                    now = load()
                    is_newer = told is None or now.room != told.room or now.sampled_at - told.sampled_at >= HEARTBEAT_S
                    if self._beats or is_newer:
                        told, self._beats = now, False
                        deltas.append(now)
                    yield deltas
        finally:
            self._timer.cancel()

    def _beat(self) -> None:
        self._beats = True
        self._ready.set()
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)
