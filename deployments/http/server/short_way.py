"""Where requests go that need not pass the layers between the door and the application that listens in this process."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Receive, Scope, Send


class ShortWay(Protocol):
    """Serves some of the requests of a process."""

    def take(self, scope: Scope) -> bool:
        """Whether ``serve`` is for this request."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it."""


_open: list[ShortWay] = []


def open_short_way(way: ShortWay) -> None:
    """Requests that ``way`` takes go there from now on. One process serves one application."""
    _open[:] = [way]


def short_way(scope: Scope) -> ShortWay | None:
    """For this request; None if it goes on as all do."""
    return _open[0] if _open and _open[0].take(scope) else None
