"""Sends the requests of one process and keeps what it saw of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.bench.answer_reader import AnswerReader
from cluster.bench.connection import Connection, Connections
from cluster.bench.load import Load, Request, Sample
from cluster.bench.plan import warm_up_requests
from cluster.bench.prompts import Prompts

# Bodies that are made before the run, so that making them disturbs no clock.
_READY_BYTES = 64 * 2**20
_GAP_S = 0.001


@dataclass
class Progress:
    """What a process has done so far."""

    completed: int = 0
    failed: int = 0
    running: int = 0
    output_tokens: int = 0


@dataclass
class Seen:
    """What one process saw.

    Attributes:
        begin, end: of the run, of ``time.perf_counter``.
        cpu_s: CPU time of the process between them.
        warm_up_errors: why warm-up requests failed.
    """

    samples: list[Sample] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    cpu_s: float = 0.0
    warm_up_errors: list[str] = field(default_factory=list)


class Driver:
    """One process's part of a load.

    Args:
        load: its share.
        processes: how many share the load.
    """

    def __init__(self, load: Load, processes: int = 1) -> None:
        self.progress = Progress()
        self._load = load
        self._processes = processes
        self._prompts = Prompts(load.prompts)
        self._connections = Connections(load.target)
        self._head = load.target.head()
        self._running: dict[int, tuple[Sample, AnswerReader]] = {}
        self._seen = Seen()
        self._stop = asyncio.Event()
        self._ready: dict[int, bytes] = {}

    def stop(self) -> None:
        """End the run now, with what there is."""
        self._stop.set()

    async def warm_up(self) -> None:
        """Send the warm-up requests, as many at a time as the load has streams, and make bodies ahead."""
        requests = iter(warm_up_requests(self._load.requests, self._load.num_warmups))
        streams = min(self._load.num_warmups, self._load.streams or 16)
        await self._until_stopped(self._closed_loop(requests, streams), time.perf_counter() + self._load.max_seconds)
        self._seen.warm_up_errors = [sample.error for sample in self._seen.samples if sample.error is not None]
        self._seen.samples.clear()
        self._running.clear()
        self.progress = Progress()
        size = 0
        for request in self._load.requests:
            body = self._request(request)
            size += len(body)
            if size > _READY_BYTES:
                break
            self._ready[request.index] = body

    async def run(self, begin: float) -> Seen:
        """Send everything from ``begin`` on, of ``time.perf_counter``; what was seen."""
        seen = self._seen
        await asyncio.sleep(max(0.0, begin - time.perf_counter()))
        seen.begin, cpu = begin, time.process_time()
        requests = self._load.in_order(self._processes)
        is_open = bool(self._load.requests) and self._load.requests[0].due_s is not None
        work = self._open_loop(requests, begin) if is_open else self._closed_loop(requests, self._load.streams or 0)
        await self._until_stopped(work, begin + self._load.max_seconds)
        seen.cpu_s = time.process_time() - cpu
        is_cut = bool(self._running) or self._stop.is_set()
        seen.end = time.perf_counter() if is_cut else max((sample.end for sample in seen.samples), default=begin)
        for sample, answer in self._running.values():
            self._enter(sample, answer)
            sample.is_cut, sample.end = sample.error is None, seen.end
            seen.samples.append(sample)
        self._connections.close()
        return seen

    async def _until_stopped(self, work: Coroutine[Any, Any, None], deadline: float | None = None) -> None:
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        left = None if deadline is None else max(0.0, deadline - time.perf_counter())
        await asyncio.wait((task, stopped), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            task.result()
            return
        task.cancel()
        await asyncio.wait((task,))

    async def _closed_loop(self, requests: Iterator[Request], streams: int) -> None:
        async def stream() -> None:
            for request in requests:
                await self._send(request, None)

        await _all(stream() for _ in range(streams))

    async def _open_loop(self, requests: Iterator[Request], begin: float) -> None:
        limit = asyncio.Semaphore(self._load.streams) if self._load.streams is not None else None
        tasks: set[asyncio.Task] = set()

        async def send(request: Request, due: float) -> None:
            try:
                await self._send(request, due)
            finally:
                if limit is not None:
                    limit.release()

        try:
            for request in requests:
                due = begin + (request.due_s or 0.0)
                if request.index not in self._ready:
                    self._ready[request.index] = self._request(request)
                # The loop's clock counts milliseconds: the last one is waited for in turns with the answers.
                while (left := due - time.perf_counter()) > 0:
                    await asyncio.sleep(left - _GAP_S if left > _GAP_S else 0)
                if limit is not None:
                    await limit.acquire()
                task = asyncio.ensure_future(send(request, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _send(self, request: Request, due: float | None) -> None:
        """One request, to the end of its answer."""
        data = self._ready.pop(request.index, None) or self._request(request)
        answer = AnswerReader(request.leaves_after)
        asked = time.perf_counter()
        sample = Sample(request.index, asked if due is None else due, asked, request.output_tokens)
        self._running[request.index] = sample, answer
        self.progress.running += 1
        connection: Connection | None = None
        try:
            connection = await self._connections.get()
            sample.end = await connection.ask(data, answer)
        except OSError as error:
            answer.broken(_reason(error))
            sample.end = time.perf_counter()
            # An address where nobody answers is asked again at once by every stream.
            await asyncio.sleep(0.05)
        self.progress.running -= 1
        del self._running[request.index]
        if connection is not None:
            self._connections.put_back(connection)
        self._enter(sample, answer)
        sample.is_cut = sample.error is None and answer.is_left
        self._seen.samples.append(sample)
        self.progress.failed += sample.error is not None
        self.progress.completed += sample.is_whole
        self.progress.output_tokens += sample.output_tokens

    def _enter(self, sample: Sample, answer: AnswerReader) -> None:
        sample.arrivals, sample.error = answer.arrivals, answer.error
        sample.output_tokens = answer.output_tokens or 0
        sample.prompt_tokens, sample.cached_tokens = answer.prompt_tokens or 0, answer.cached_tokens

    def _request(self, request: Request) -> bytes:
        prompt, load = self._prompts.prompt(request), self._load
        if load.is_chat:
            prompt = f'"messages":[{{"role":"user","content":{prompt}}}]'
        else:
            prompt = f'"prompt":{prompt}'
        limit = "max_completion_tokens" if load.is_chat else "max_tokens"
        body = f'{{{prompt},"{limit}":{request.output_tokens},{load.fields}}}'.encode()
        return self._head + b"%d\r\n\r\n" % len(body) + body


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Like gather, but what is cancelled with it has ended."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        if tasks:
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in the quickest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
