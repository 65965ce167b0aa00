"""A small HTTP server of this process that streams answers as it is told to, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(word: str = " a") -> bytes:
    return event({"choices": [{"index": 0, "text": word, "finish_reason": None}]})


def usage(tokens: int, prompt: int = 7) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}})


class SmallServer:
    """Answers every POST with ``answer(body)``: pieces to write, and in between seconds to wait, or None to break off.

    Attributes:
        bodies: of all requests, in the order in which they came.
        most: requests that were under way at the same time.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], list[Any]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._running = 0
        self._answer = answer
        self.status = 200
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines[1:] if line)
                if lines[0].startswith("GET"):
                    body = json.dumps({"object": "list", "data": [{"id": "small"}]}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    continue
                request = json.loads(await reader.readexactly(int(headers["Content-Length"])))
                self.bodies.append(request)
                self.headers.append(headers)
                self._running += 1
                self.most = max(self.most, self._running)
                writer.write(b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % self.status)
                for part in self._answer(request):
                    if part is None:
                        self._running -= 1
                        writer.close()
                        return
                    if isinstance(part, (int, float)):
                        await writer.drain()
                        await asyncio.sleep(part)
                    else:
                        writer.write(b"%x\r\n" % len(part) + part + b"\r\n")
                self._running -= 1
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@contextmanager
def serving(answer: Callable[[dict[str, Any]], list[Any]]) -> Iterator[SmallServer]:
    """A server in a thread."""
    small, loop, ready = SmallServer(answer), asyncio.new_event_loop(), threading.Event()

    def run() -> None:
        async def begin() -> asyncio.Server:
            return await asyncio.start_server(small.serve, "127.0.0.1", 0, backlog=1024)

        server = loop.run_until_complete(begin())
        small.port = server.sockets[0].getsockname()[1]
        ready.set()
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield small
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def tokens(body: dict[str, Any], count: int | None = None) -> list[Any]:
    """A whole answer of as many tokens as were asked for, one an event."""
    count = body["max_tokens"] if count is None else count
    return [*(text() for _ in range(count)), usage(count, len(body["prompt"])), DONE]
