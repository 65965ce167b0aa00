"""A client that sends its next request before it has the answer, and leaves, leaves the answer under way, too.

uvicorn tells the newest request of a connection that its client has left. Where others wait behind the one that is answered, that
is not this one: it would be answered to the end, to nobody.
"""

from __future__ import annotations

import functools
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def tell_who_is_answered() -> None:
    """Have every connection that servers of this process lose end its answer under way. Only this protocol of uvicorn's parses
    a request before the one before it is answered."""
    if not hasattr(HttpToolsProtocol.connection_lost, "tells_who_is_answered"):
        HttpToolsProtocol._start_asgi_task = _noting(HttpToolsProtocol._start_asgi_task)  # type: ignore[method-assign]
        HttpToolsProtocol.connection_lost = _telling(HttpToolsProtocol.connection_lost)  # type: ignore[method-assign]


def _noting(start: Any) -> Any:
    @functools.wraps(start)
    def noting(self: Any, cycle: Any, app: Any) -> None:
        self.answered_cycle = cycle
        start(self, cycle, app)

    return noting


def _telling(connection_lost: Any) -> Any:
    @functools.wraps(connection_lost)
    def telling(self: Any, exc: Exception | None) -> None:
        connection_lost(self, exc)
        cycle = getattr(self, "answered_cycle", None)
        if cycle is not None and cycle is not self.cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    telling.tells_who_is_answered = True  # type: ignore[attr-defined]
    return telling
