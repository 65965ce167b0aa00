"""Parts of a body that go to the connection at once: ``send`` passes half a dozen coroutines of Serve, Starlette and uvicorn."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http import httptools_impl

from deployments.http.body_writer import offer_body_writer
from deployments.http.server.http_1_0 import UnchunkedCycle


class WritingCycle(UnchunkedCycle):
    """A ``BodyWriter`` for who handles its request."""

    async def run_asgi(self, app: Any) -> None:
        """Have ``app`` answer the request."""
        offer_body_writer(self)
        await super().run_asgi(app)

    def write(self, body: bytes) -> bool:
        """Write a chunk, as ``send`` would; see ``BodyWriter``."""
        # Without a length, and once the header was sent, there are chunks; an empty one would end the answer.
        if (
            not self.chunked_encoding
            or self.response_complete
            or self.disconnected
            or self.flow.write_paused
            or not body
        ):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


def write_directly() -> None:
    """Make this process's HTTP servers do so; call it before a connection is made."""
    # The protocol looks for it by this name.
    vars(httptools_impl)["RequestResponseCycle"] = WritingCycle
