"""For how many open requests an ingress has room, in the head of each answer: HAProxy fills one ingress before the next.

``haproxy_packing.awk`` reads it, and ``haproxy_on_loopback.sh`` takes it away before a client sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http import httptools_impl

from cluster.scaling.packing import PACKING, next_limit
from deployments.http.server.direct_writes import WritingCycle
from deployments.start.serve_environment import haproxy_is_ours, haproxy_is_used

ROOM_HEADER = b"x-bireme-room"
_LOOK_S = 1.0


class Room:
    """Counts the open requests of this process. What they take it looks at when an answer begins: nobody hears it before.

    Args:
        most: it has room for no more, whatever they take.
        now, cpu_time: clocks; seconds.
    """

    def __init__(
        self,
        most: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
        cpu_time: Callable[[], float] = time.process_time,
    ) -> None:
        self._most, self._now, self._cpu_time = most, now, cpu_time
        self._limit = PACKING.first
        self._num_open = 0
        # Seconds of open requests, until the last change of their number; and all three when the limit was looked at.
        self._open_s, self._changed = 0.0, now()
        self._looked = self._open_s, self._changed, cpu_time()

    def change(self, begun: int) -> None:
        """So many requests have begun; -1: one has ended."""
        self._count_until(self._now())
        self._num_open += begun

    def header(self) -> tuple[bytes, bytes]:
        """The limit, and how many are open."""
        now = self._now()
        if now - self._looked[1] >= _LOOK_S:
            self._look(now)
        return ROOM_HEADER, b"%d/%d" % (min(self._limit, self._most()), self._num_open)

    def _count_until(self, now: float) -> None:
        self._open_s += self._num_open * (now - self._changed)
        self._changed = now

    def _look(self, now: float) -> None:
        self._count_until(now)
        (open_s, since, cpu_s), self._looked = self._looked, (self._open_s, now, self._cpu_time())
        lasted = now - since
        self._limit = next_limit(self._limit, (self._open_s - open_s) / lasted, (self._looked[2] - cpu_s) / lasted)


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


def count_requests() -> None:
    """Let this process's HTTP servers count; call it before a connection is made."""
    # The protocol looks for it by this name.
    vars(httptools_impl)["RequestResponseCycle"] = RoomCycle


def tell_room(most: Callable[[], int]) -> None:
    """Have this process, an ingress, say so where HAProxy knows what to do with it; never for more than ``most`` requests."""
    if haproxy_is_used() and haproxy_is_ours():
        RoomCycle.room = Room(most)
