"""What goes to a connection at once, or comes from it: ``send`` and ``receive`` pass half a dozen coroutines of Serve, Starlette
and uvicorn. The head of an answer leaves with what follows it at once: server, proxy and client have one turn less of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from deployments.http.body_writer import offer_body_writer
from deployments.http.server.http_1_0 import UnchunkedCycle
from deployments.http.server.pipelining import note_answered
from deployments.native.step_writer import Outlet, step_writer


class WritingCycle(UnchunkedCycle):
    """A ``BodyWriter`` for who handles its request."""

    _outlet: Outlet
    _behind: _BehindHead
    _is_gone = False
    _tell: Callable[[], None] | None = None

    async def run_asgi(self, app: Any) -> None:
        """Have ``app`` answer the request."""
        note_answered(self)
        # Under TLS bytes are the transport's alone.
        is_plain = self.transport.get_extra_info("ssl_object") is None
        sock = self.transport.get_extra_info("socket") if is_plain else None
        self._outlet = step_writer().outlet(self.transport, self.flow, -1 if sock is None else sock.fileno())
        self._behind = _BehindHead(self.transport)
        self.transport = self._behind  # type: ignore[assignment]
        offer_body_writer(self)
        await super().run_asgi(app)

    async def send(self, message: Any) -> None:
        """Send an ASGI message behind all that was written; a head with the next one, or in the event loop's next turn."""
        self._outlet.flush()
        behind = self._behind
        behind.is_head = message["type"] == "http.response.start" and not self.response_started
        try:
            await super().send(message)
        finally:
            if behind.is_head:
                behind.is_head = False
                asyncio.get_running_loop().call_soon(behind.flush)
            else:
                behind.flush()

    # The protocol sets it when the connection is lost.
    @property
    def disconnected(self) -> bool:
        """Whether the client has left."""
        return self._is_gone

    @disconnected.setter
    def disconnected(self, is_gone: bool) -> None:
        self._is_gone = is_gone
        if is_gone and self._tell is not None:
            self._tell()

    def when_gone(self, tell: Callable[[], None] | None) -> bool:
        """See ``BodyWriter``."""
        self._tell = tell
        if self._is_gone or self.response_complete:
            return False
        # As ``receive`` does: who is not read from is not seen to leave.
        self.flow.resume_reading()
        return True

    @property
    def chunk_outlet(self) -> Outlet | None:
        """See ``BodyWriter``."""
        self._behind.flush()
        # Without a length, and once the header was sent, there are chunks; an empty one would end the answer.
        return None if not self.chunked_encoding or self.response_complete or self.disconnected else self._outlet

    def write(self, body: bytes) -> bool:
        """Write a chunk, as ``send`` would; see ``BodyWriter``."""
        outlet = self.chunk_outlet
        if outlet is None or self.flow.write_paused or not body:
            return False
        outlet.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


class _BehindHead:
    """A transport, as far as one answer's cycle uses it.

    Attributes:
        is_head: what is written now is the head, and waits for what follows.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_head = False
        self.is_closing, self.abort = transport.is_closing, transport.abort
        self.get_extra_info = transport.get_extra_info

    def write(self, data: bytes) -> None:
        """As the transport."""
        if self.is_head:
            self._head += data
            return
        head, self._head = self._head, b""
        self._transport.write(head + data)

    def close(self) -> None:
        """As the transport."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write what waits."""
        if self._head and not self.is_closing():
            self.write(b"")
