"""The connection of a request, past all that an application's ``send`` and ``receive`` go through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from deployments.native.step_writer import Outlet


class BodyWriter(Protocol):
    """The connection that a request came on."""

    def write(self, body: bytes) -> bool:
        """Write a part that is not the last one; False if nothing was written and ``send`` has to do it, because the client reads
        slowly or has gone, or this is not how its answer is written. Order is kept as long as no ``send`` is waiting. During a
        step of an engine it leaves at the step's end, or with the next ``send``."""
        ...

    def when_gone(self, tell: Callable[[], None] | None) -> bool:
        """Have ``tell``, and nobody else, called when the client leaves, or nobody; False if it has left, or has its answer. Once
        the request's body was read: what else comes on the connection is not waited for."""
        ...

    @property
    def chunk_outlet(self) -> Outlet | None:
        """Where who makes chunks, as HTTP/1.1 has them, may write them like ``write`` for as long as the connection lives and
        this answer is not over; None if there is no such place."""
        ...


# Set by a server in the context of each request: a scope travels to other processes, and this cannot.
_WRITER: ContextVar[tuple[asyncio.AbstractEventLoop, BodyWriter] | None] = ContextVar("body_writer", default=None)


def offer_body_writer(writer: BodyWriter) -> None:
    """The request that is handled in this context, on this event loop, came on ``writer``."""
    _WRITER.set((asyncio.get_running_loop(), writer))


def body_writer() -> BodyWriter | None:
    """Of the request that is handled in this context; None if its connection ends elsewhere: in another thread or process."""
    offered = _WRITER.get()
    return offered[1] if offered is not None and offered[0] is asyncio.get_running_loop() else None
