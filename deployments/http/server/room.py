"""For how many open requests an ingress has room, in the head of each answer: HAProxy fills one ingress before the next.

``haproxy_packing.awk`` reads it, and ``haproxy_on_loopback.sh`` takes it away before a client sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from cluster.process.run_queue import run_queue_wait
from cluster.scaling.packing import PACKING, next_limit
from deployments.http.server.direct_writes import WritingCycle
from deployments.start.serve_environment import haproxy_is_ours, haproxy_is_used

ROOM_HEADER = b"x-bireme-room"
_LOOK_S = 1.0


def busy_time() -> float:
    """Seconds of CPU time of this process, and those that the calling thread has waited for a core."""
    return time.process_time() + (run_queue_wait() or 0.0)


class Room:
    """Counts the open requests of this process. What they take it looks at when an answer begins: nobody hears it before.

    Args:
        most: it has room for no more, whatever they take; but for one, from whose answer it is heard that there is more.
        now, busy: clocks; seconds. Both are asked on the event loop's thread alone.
    """

    def __init__(
        self,
        most: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = busy_time,
    ) -> None:
        self._most, self._now, self._busy = most, now, busy
        self._limit = PACKING.first
        self._num_open = 0
        # Seconds of open requests, until the last change of their number; and all three when the limit was looked at.
        self._open_s, self._changed = 0.0, now()
        self._looked = self._open_s, self._changed, busy()

    def change(self, begun: int) -> None:
        """So many requests have begun; -1: one has ended."""
        self._count_until(self._now())
        self._num_open += begun

    def header(self) -> tuple[bytes, bytes]:
        """The limit, and how many are open."""
        now = self._now()
        if now - self._looked[1] >= _LOOK_S:
            self._look(now)
        return ROOM_HEADER, b"%d/%d" % (max(1, min(self._limit, self._most())), self._num_open)

    def _count_until(self, now: float) -> None:
        self._open_s += self._num_open * (now - self._changed)
        self._changed = now

    def _look(self, now: float) -> None:
        self._count_until(now)
        (open_s, since, busy_s), self._looked = self._looked, (self._open_s, now, self._busy())
        lasted = now - since
        num_open, busy = (self._open_s - open_s) / lasted, (self._looked[2] - busy_s) / lasted
        self._limit = next_limit(self._limit, num_open, busy, lasted)


class RoomCycle(WritingCycle):
    """Says it with each answer, in a process that has one."""

    room: ClassVar[Room | None] = None

    async def run_asgi(self, app: Any) -> None:
        """Have ``app`` answer the request."""
        if (room := self.room) is None:
            await super().run_asgi(app)
            return
        room.change(1)
        try:
            await super().run_asgi(app)
        finally:
            room.change(-1)

    async def send(self, message: Any) -> None:
        """Send an ASGI message; see ``WritingCycle``."""
        if message["type"] == "http.response.start" and (room := self.room) is not None:
            message = {**message, "headers": [*message.get("headers", ()), room.header()]}
        await super().send(message)


def tell_room(most: Callable[[], int]) -> None:
    """Have this process, an ingress, say so where HAProxy knows what to do with it, and the kernel tells whether it has the core
    that it wants; never for more than ``most`` requests."""
    if haproxy_is_used() and haproxy_is_ours() and run_queue_wait() is not None:
        RoomCycle.room = Room(most)
