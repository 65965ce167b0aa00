"""What goes to a connection at once, or comes from it: ``send`` and ``receive`` pass half a dozen coroutines of Serve, Starlette
and uvicorn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http import httptools_impl

from deployments.http.body_writer import offer_body_writer
from deployments.http.server.http_1_0 import UnchunkedCycle
from deployments.native.step_writer import Outlet, native_module, step_writer


class WritingCycle(UnchunkedCycle):
    """A ``BodyWriter`` for who handles its request."""

    _outlet: Outlet
    _is_gone = False
    _tell: Callable[[], None] | None = None

    async def run_asgi(self, app: Any) -> None:
        """Have ``app`` answer the request."""
        # Under TLS bytes are the transport's alone.
        is_plain = self.transport.get_extra_info("ssl_object") is None
        sock = self.transport.get_extra_info("socket") if is_plain else None
        self._outlet = step_writer().outlet(self.transport, self.flow, -1 if sock is None else sock.fileno())
        offer_body_writer(self)
        await super().run_asgi(app)

    async def send(self, message: Any) -> None:
        """Send an ASGI message behind all that was written."""
        self._outlet.flush()
        await super().send(message)

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
        # Without a length, and once the header was sent, there are chunks; an empty one would end the answer.
        return None if not self.chunked_encoding or self.response_complete or self.disconnected else self._outlet

    def write(self, body: bytes) -> bool:
        """Write a chunk, as ``send`` would; see ``BodyWriter``."""
        outlet = self.chunk_outlet
        if outlet is None or self.flow.write_paused or not body:
            return False
        outlet.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


def write_directly() -> None:
    """Make this process's HTTP servers do so; call it before a connection is made."""
    native_module()  # compiled and loaded before anybody waits
    # The protocol looks for it by this name.
    vars(httptools_impl)["RequestResponseCycle"] = WritingCycle
