"""HTTP/1.1 connections that stamp what arrives where it arrives, before anything else is done with it."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from cluster.bench.answer_reader import AnswerReader

# Servers close connections that were idle; uvicorn's five seconds are the shortest that are common.
_LONGEST_IDLE_S = 4.0
_CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        url: http or https, host, port.
        path: of the endpoint.
        headers: beside those that every request has.
    """

    url: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()

    def address(self) -> tuple[str, int, bool]:
        """(host, port, whether it is TLS)."""
        parts = urlsplit(self.url)
        is_tls = parts.scheme == "https"
        return parts.hostname or "127.0.0.1", parts.port or (443 if is_tls else 80), is_tls

    def head(self) -> bytes:
        """What a request begins with, up to the value of Content-Length."""
        parts = urlsplit(self.url)
        lines = [
            f"POST {parts.path.rstrip('/')}{self.path} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            *(f"{name}: {value}" for name, value in self.headers),
            "Content-Length: ",
        ]
        return "\r\n".join(lines).encode()


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self.idle_since = 0.0
        self._transport: Any = None
        self._parser: Any = None
        self._answer: AnswerReader | None = None
        self._ended: asyncio.Future[float] | None = None
        self._now = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = transport, True

    def ask(self, request: bytes, answer: AnswerReader) -> asyncio.Future[float]:
        """Send a request. The future is done when its answer is over, well or not, with the time of its last byte."""
        self._answer, self._parser = answer, httptools.HttpResponseParser(self)
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._ended

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._answer is None:  # nobody has asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._broken(f"it is no HTTP: {error}")

    def on_headers_complete(self) -> None:
        if self._answer is not None:
            self._answer.begin(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._answer.feed(body, self._now)
            if self._answer.is_left:
                self._end()

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or self._parser.get_status_code() < 200:
            return
        answer.end()
        self.idle_since = self._now
        self._end(is_kept=self._parser.should_keep_alive())

    def connection_lost(self, error: Exception | None) -> None:
        self._now = time.perf_counter()
        self._broken(str(error) if error else "closed by the server")

    def close(self) -> None:
        """Leave at once."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _broken(self, why: str) -> None:
        if self._answer is not None:
            self._answer.broken(why)
        self._end()

    def _end(self, is_kept: bool = False) -> None:
        """Nobody waits for the answer any more."""
        ended, self._answer, self._ended = self._ended, None, None
        if not is_kept:
            self.close()
        if ended is not None and not ended.done():
            ended.set_result(self._now)


class Connections:
    """Connections to one target, kept while they are of use."""

    def __init__(self, target: Target) -> None:
        self._host, self._port, is_tls = target.address()
        self._tls = ssl.create_default_context() if is_tls else None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def get(self) -> Connection:
        """One that is idle, or a new one.

        Raises:
            OSError: nobody answers there; also if that takes too long.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and time.perf_counter() - connection.idle_since < _LONGEST_IDLE_S:
                return connection
            self._leave(connection)
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        try:
            _, connection = await asyncio.wait_for(connecting, _CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise OSError(f"no connection within {_CONNECT_TIMEOUT_S:g} s") from None
        self._all.add(connection)
        return connection

    def put_back(self, connection: Connection) -> None:
        """A connection whose answer is over."""
        if connection.is_open:
            self._idle.append(connection)
        else:
            self._leave(connection)

    def close(self) -> None:
        """Leave all of them."""
        for connection in self._all:
            connection.close()

    def _leave(self, connection: Connection) -> None:
        connection.close()
        self._all.discard(connection)
