"""Answers to clients of HTTP/1.0, which know no chunks: they end with the connection."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class UnchunkedCycle(RequestResponseCycle):
    """Uvicorn's way from a request to its answer; 0.54 sends chunks to any client, and HAProxy passes them on."""

    _until_close = False

    async def send(self, message: Any) -> None:
        """Send an ASGI message; a body without a length is sent as it is where the client speaks HTTP/1.0."""
        if message["type"] == "http.response.start" and self.scope["http_version"] == "1.0":
            self._until_close = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
        if self._until_close:
            # No chunks, and never more or less than what was announced.
            self.chunked_encoding = False
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
