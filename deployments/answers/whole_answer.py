"""Answers as one JSON object."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cluster.api_errors import ApiError
from deployments.answers.generation import Generation
from deployments.answers.response_builder import ResponseBuilder
from deployments.http.connection import ClientGoneError, may_leave_unnoticed, while_connected
from deployments.http.errors import error_response
from deployments.http.json_pieces import write_json
from deployments.http.large_requests import large_requests

_HEARTBEAT_S = 15.0


class WholeAnswer(Response):
    """Waits for the end of a generation and sends it as JSON.

    Behind a proxy of which nothing is known, an answer that takes longer than 15 seconds begins with spaces, which JSON allows:
    they keep proxies from closing a silent connection (after 30 to 60 seconds, mostly), and writing is the only way to learn of
    a client that has gone behind a proxy which does not pass that on. HAProxy does not when a request came in two pieces, as
    Python's clients send it, and was spliced, which ``bireme serve`` forbids it (``haproxy_on_loopback.sh``). After the first
    space it is too late for an error status: the error object is sent for a person to read, and the connection broken off, so
    that no client takes what came for an answer. A client of HTTP/1.0 would, since its answers end with the connection: it
    gets no spaces.

    Args:
        client: for whom it is built (``Peer.name``).
    """

    media_type = "application/json"

    def __init__(self, generation: Generation, answer: ResponseBuilder, client: str = "") -> None:
        super().__init__()
        del self.headers["content-length"]
        self._generation = generation
        self._answer = answer
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._write(scope, receive, send))
        except (ClientGoneError, OSError):
            pass
        finally:
            self._generation.close()

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        reading = asyncio.ensure_future(self._whole())
        try:
            has_heartbeat = scope.get("http_version") != "1.0" and may_leave_unnoticed(scope)
            heartbeat_s = _HEARTBEAT_S if has_heartbeat else None
            while not (await asyncio.wait((reading,), timeout=heartbeat_s))[0]:
                if not started:
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    started = True
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
            pieces = reading.result()
        except ApiError as error:
            if started:
                await send({"type": "http.response.body", "body": JSONResponse(error.body()).body, "more_body": True})
                raise
            await error_response(error)(scope, receive, send)
            return
        finally:
            reading.cancel()
        if not started:
            headers = [*self.raw_headers, (b"content-length", str(sum(map(len, pieces))).encode())]
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self) -> list[bytes]:
        while not self._generation.finished:
            await self._generation.read()
        return await large_requests.build(self._client, self._answer.num_values(), self._written)

    def _written(self, in_pieces: bool) -> list[bytes]:
        return [piece.encode() for piece in write_json(self._answer.whole(), in_pieces)]
