"""What is said on its way from a runner to one subscriber, with a heartbeat where there is nothing to say."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from cluster.outputs import EngineLoad, StreamItem
from cluster.process.silence_clock import SilenceClock

# Half of ``MAX_LOAD_AGE_S``: a beat that is late by its own length, on a busy machine, leaves nobody without knowledge.
HEARTBEAT_S = 0.25


class SubscriberStream(Protocol):
    """One way to a subscriber.

    Attributes:
        lease: counts the subscriber's silence where its connection does not tell when it is gone; else None.
    """

    lease: SilenceClock | None

    def put(self, items: Sequence[StreamItem]) -> None:
        """Say ``items``, behind all that was said before, when ``flush`` is called. Any thread may do both."""

    def flush(self) -> None:
        """Nothing more is said now."""

    def tell(self, load: EngineLoad) -> None:
        """Say what the engine takes if that is news, when ``flush`` is called. On the actor's loop."""

    def close(self) -> None:
        """End the stream once everything is said."""


def is_news(told: EngineLoad | None, now: EngineLoad) -> bool:
    """Whether a subscriber that was told ``told`` last should hear ``now``: the engine takes more or less than that said, or what
    it said of the queue was of before a long step."""
    return told is None or now.room != told.room or now.sampled_at - told.sampled_at >= HEARTBEAT_S


class DeltaStream:
    """A ``SubscriberStream`` that somebody iterates over on an event loop, on which it is made. What gathers while a message is
    under way goes out as one."""

    def __init__(self, leased: bool = False) -> None:
        self.lease = SilenceClock() if leased else None
        self.closed = False
        self._pending: deque[StreamItem] = deque()
        self._ready = asyncio.Event()
        self._beats = False
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def put(self, items: Sequence[StreamItem]) -> None:
        self._pending.extend(items)

    def flush(self) -> None:
        if threading.get_ident() == self._thread:
            self._ready.set()
        else:
            self._loop.call_soon_threadsafe(self._ready.set)

    def tell(self, load: EngineLoad) -> None:
        """It says what the load is when its message goes out."""

    def close(self) -> None:
        self.closed = True
        self._ready.set()

    async def messages(
        self, is_well: Callable[[], bool], load: Callable[[], EngineLoad]
    ) -> AsyncGenerator[list[StreamItem], None]:
        """Yield what was put, and ``load()`` where that is news; at least every HEARTBEAT_S seconds, as long as ``is_well()``."""
        told: EngineLoad | None = None
        self._beat()
        try:
            while not self.closed or self._pending:
                await self._ready.wait()
                self._ready.clear()
                said = [self._pending.popleft() for _ in range(len(self._pending))]
                if said or (not self.closed and is_well()):
                    now = load()
                    if self._beats or is_news(told, now):
                        told, self._beats = now, False
                        said.append(now)
                    if said:
                        yield said
        finally:
            self._timer.cancel()

    def _beat(self) -> None:
        self._beats = True
        self._ready.set()
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)
