"""A client that sends its next request before it has the answer, and leaves, leaves the answer under way, too.

uvicorn tells the newest request of a connection that its client has left. Where others wait behind the one that is answered, that
is not this one: it would be answered to the end, to nobody.
"""

from __future__ import annotations

import functools
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


def note_answered(cycle: RequestResponseCycle) -> None:
    """Of those of its connection, this is the one that is answered from now on; called before anything is put around its
    transport."""
    cycle.transport.get_protocol().answered_cycle = cycle  # type: ignore[attr-defined]
    if cycle.transport.is_closing():  # lost before it began
        cycle.disconnected = True


def tell_who_is_answered() -> None:
    """Have every connection that servers of this process lose end its answer under way. Only this protocol of uvicorn's parses
    a request before the one before it is answered."""
    if not hasattr(HttpToolsProtocol.connection_lost, "tells_who_is_answered"):
        HttpToolsProtocol.connection_lost = _telling(HttpToolsProtocol.connection_lost)  # type: ignore[method-assign]


def _telling(connection_lost: Any) -> Any:
    @functools.wraps(connection_lost)
    def telling(self: Any, exc: Exception | None) -> None:
        connection_lost(self, exc)
        cycle = vars(self).pop("answered_cycle", None)
        if cycle is not None and cycle is not self.cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    telling.tells_who_is_answered = True  # type: ignore[attr-defined]
    return telling
