"""Closed-loop clients that cost little: several processes, one callback a piece of data, token-id prompts, greedy answers.

A client asks again on the same connection as soon as it is answered. Chunks are counted and stamped, not parsed; the usage at the
end of an answer says whether all tokens came.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import re
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import uvloop

_EVENT = b"data: {"
_END = b"data: [DONE]\n\n"
_LAST_CHUNK = b"0\r\n\r\n"
_TAIL_BYTES = 1024
_COUNTED = re.compile(rb'"completion_tokens":(\d+)')


@dataclass(frozen=True)
class Load:
    """What one process does.

    Attributes:
        streams: clients at a time.
        prompt_tokens, answer_tokens: of each request.
        from_s, until_s: only what comes in between counts, of ``time.monotonic``; then the clients leave.
    """

    port: int
    model: str
    streams: int
    prompt_tokens: int
    answer_tokens: int
    from_s: float
    until_s: float
    seed: int


@dataclass
class Seen:
    """What clients saw between ``from_s`` and ``until_s``; seconds.

    Attributes:
        first: from the request to the first chunk, one an answer that began.
        gaps: between pieces of data of an answer.
        chunks, answers: how many came, and how many ended.
        whole_chunks, whole_answers: of all answers that ended, also before and after.
        cpu_s: of the client's process.
    """

    first: array = field(default_factory=lambda: array("d"))
    gaps: array = field(default_factory=lambda: array("d"))
    chunks: int = 0
    answers: int = 0
    whole_chunks: int = 0
    whole_answers: int = 0
    cpu_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    def merge(self, other: Seen) -> None:
        """Add what another process saw."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class _Client(asyncio.Protocol):
    def __init__(self, load: Load, seen: Seen, number: int, ended: asyncio.Future) -> None:
        self._load, self._seen, self._ended = load, seen, ended
        rng = random.Random(load.seed * 100_003 + number)
        self._prompt = ",".join(str(rng.randrange(1000, 30_000)) for _ in range(load.prompt_tokens - 1))
        self._rng = rng
        self._transport: Any = None
        self._asked = self._last = 0.0
        self._tail = b""
        self._num_chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        load = self._load
        body = (
            f'{{"model":"{load.model}","prompt":[{self._rng.randrange(1000, 30_000)},{self._prompt}],'
            f'"max_tokens":{load.answer_tokens},"temperature":0,"ignore_eos":true,"stream":true,'
            '"stream_options":{"include_usage":true}}'
        )
        self._tail, self._last, self._num_chunks = b"", 0.0, 0
        self._asked = time.monotonic()
        self._transport.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        seen, counts = self._seen, self._load.from_s <= now
        num_events = data.count(_EVENT)
        if num_events:
            self._num_chunks += num_events
            if counts:
                seen.chunks += num_events
                if self._last:
                    seen.gaps.append(now - self._last)
                elif self._asked >= self._load.from_s:
                    seen.first.append(now - self._asked)
            self._last = now
        self._tail = tail = (self._tail + data)[-_TAIL_BYTES:]
        if tail.endswith(_LAST_CHUNK):
            self._answered(tail, counts)
        elif now >= self._load.until_s:
            self._leave()

    def _answered(self, tail: bytes, counts: bool) -> None:
        found = _COUNTED.search(tail)
        if _END not in tail or found is None or int(found[1]) != self._load.answer_tokens:
            self._seen.errors.append(tail[-300:].decode(errors="replace"))
            self._leave()
            return
        self._seen.answers += counts
        self._seen.whole_answers += 1
        self._seen.whole_chunks += self._num_chunks
        if time.monotonic() < self._load.until_s:
            self._ask()
        else:
            self._leave()

    def _leave(self) -> None:
        self._transport.abort()
        if not self._ended.done():
            self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._seen.errors.append(f"connection lost: {error}")
            self._ended.set_result(None)


async def _run(load: Load) -> Seen:
    seen, loop = Seen(), asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(load.streams)]

    async def connect(number: int) -> None:
        await loop.create_connection(lambda: _Client(load, seen, number, ends[number]), "127.0.0.1", load.port)

    await asyncio.gather(*map(connect, range(load.streams)))
    await asyncio.sleep(load.from_s - time.monotonic())
    begun = time.process_time()
    await asyncio.sleep(load.until_s - time.monotonic())
    seen.cpu_s = time.process_time() - begun
    await asyncio.wait(ends, timeout=30)
    return seen


def _work(connection: Any) -> None:
    """Loads of one process, one after the other, until there is none; first a word that it is there."""
    connection.send(None)
    while (load := connection.recv()) is not None:
        connection.send(uvloop.run(_run(load)) if load.streams else Seen())


class LoadClients:
    """Client processes that stay between loads."""

    def __init__(self, num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = []
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            self._processes.append((process, ours))
        for _, connection in self._processes:
            connection.recv()

    def start(self, port: int, model: str, streams: int, tokens: tuple[int, int], span: tuple[float, float]) -> None:
        """Begin a load.

        Args:
            streams: of all processes together.
            tokens: of a prompt, and of its answer.
            span: ``from_s`` and ``until_s`` of ``Load``.
        """
        count = len(self._processes)
        for i, (_, connection) in enumerate(self._processes):
            share = streams // count + (i < streams % count)
            connection.send(Load(port, model, share, *tokens, *span, seed=i))

    def result(self) -> Seen:
        """Wait for the end of the load."""
        whole = Seen()
        for _, connection in self._processes:
            whole.merge(connection.recv())
        return whole

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._processes:
            connection.send(None)
            process.join()
