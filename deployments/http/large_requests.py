"""Large requests of one ingress: few are worked on at once, beside the event loop, by turns, and what all hold is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from cluster.api_errors import ApiError, overloaded
from deployments.http.fair_queue import FairQueue, Ticket

# Read and encoded within a few milliseconds: what is longer must not hold up other clients' tokens.
SMALL_BYTES = 2**13
SMALL_VALUES = 2**12
# Threads take turns with the event loop, five milliseconds each; encoding lets all run.
_AT_ONCE = 2
# What is expected; a client is charged for what its work has taken in the end.
_S_PER_BYTE = _S_PER_VALUE = 1e-6
# Bodies of all clients together that are read, wait or are worked on: so many, and so many bytes or so many of the largest.
# A client holds at most as much as is left for the others: one alone a half, the next one a quarter.
_MAX_BODIES = 512
_MIN_BYTES_IN_FLIGHT = 64 * 2**20
_LARGEST_IN_FLIGHT = 4
_RETRY_AFTER_S = 2

_Result = TypeVar("_Result")


class Holding:
    """Bytes of one body, counted until ``LargeRequests.holding`` ends."""

    def __init__(self, held_bytes: Counter[str], client: str) -> None:
        self._held_bytes = held_bytes
        self._client = client
        self.num_bytes = 0

    def grow_to(self, num_bytes: int, max_bytes: int) -> None:
        """Count the body, which has ``num_bytes`` by now, or will have, and may have ``max_bytes``.

        Raises:
            ApiError: 429, the client's bodies together would be too large.
        """
        held, new = self._held_bytes, max(0, num_bytes - self.num_bytes)
        if not new:
            # What was promised room keeps it, whoever comes meanwhile.
            return
        free = max(_MIN_BYTES_IN_FLIGHT, _LARGEST_IN_FLIGHT * max_bytes) - held.total()
        if held[self._client] + new > free - new:
            raise overloaded("large request bodies of this client take all the room that it has", _RETRY_AFTER_S)
        self.num_bytes += new
        held[self._client] += new


class _Job(NamedTuple):
    """Work for a thread, and who waits for its outcome."""

    run: Callable[[], Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class LargeRequests:
    """Runs the work of large requests in threads of its own. Every public method belongs to the event loop.

    ``client`` is whoever takes turns with others.
    """

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()
        self._queue: FairQueue[_Job] = FairQueue(_AT_ONCE)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_AT_ONCE, "large-request")

    @property
    def bytes_in_flight(self) -> int:
        """Of all bodies that are held."""
        return self._bytes.total()

    @contextlib.contextmanager
    def holding(self, client: str = "") -> Iterator[Holding]:
        """Count the bytes of one body as long as the context lasts."""
        holding = Holding(self._bytes, client)
        try:
            yield holding
        finally:
            _count(self._bytes, client, -holding.num_bytes)

    async def prepare(self, client: str, num_bytes: int, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """The result of ``work(*arguments)`` on a body, in a thread once it is its turn; it must not keep the interpreter to
        itself. Cancelled before its turn, it is not done at all.

        Raises:
            ApiError: 429, too many bodies of the client wait already; or what ``work`` raises.
        """
        if self._bodies[client] >= _MAX_BODIES - self._bodies.total():
            raise overloaded("too many large requests of this client wait already", _RETRY_AFTER_S)
        _count(self._bodies, client, 1)
        try:
            return await self._run(client, num_bytes * _S_PER_BYTE, work, *arguments)
        finally:
            _count(self._bodies, client, -1)

    async def build(self, client: str, num_values: int, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """The result of ``work(in_pieces, *arguments)``, which has about ``num_values`` values: at once and not in pieces, or
        as that of ``prepare`` if they are many. An answer is never refused: engines bound how many there are."""
        if num_values <= SMALL_VALUES:
            return work(False, *arguments)
        return await self._run(client, num_values * _S_PER_VALUE, work, True, *arguments)

    async def _run(self, client: str, cost_s: float, work: Callable[..., _Result], *arguments: Any) -> _Result:
        loop = asyncio.get_running_loop()
        job = _Job(lambda: work(*arguments), loop.create_future(), loop)
        with self._lock:
            ticket = self._queue.add(client, cost_s, job)
            self._begin_work()
        try:
            outcome = await job.done
        finally:
            with self._lock:
                self._queue.discard(ticket)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _begin_work(self) -> None:
        """Give idle threads what is next; the lock is held."""
        while (ticket := self._queue.take()) is not None:
            self._threads.submit(self._work, ticket)

    def _work(self, ticket: Ticket[_Job]) -> None:
        begun = time.thread_time()
        job = ticket.work
        outcome = _outcome(job.run)
        spent_s = time.thread_time() - begun
        with contextlib.suppress(RuntimeError):  # the loop is closed
            job.loop.call_soon_threadsafe(_set, job.done, outcome)
        # What is freed is to be freed by now.
        del job, outcome
        with self._lock:
            self._queue.finish(ticket, spent_s)
            ticket.work = None  # type: ignore[assignment]
            self._begin_work()
            if self._queue.is_idle:
                self._threads.submit(_give_memory_back)


def _count(counter: Counter[str], client: str, change: int) -> None:
    counter[client] += change
    if not counter[client]:
        del counter[client]


def _set(done: asyncio.Future[Any], outcome: Any) -> None:
    if not done.done():
        done.set_result(outcome)


def _outcome(run: Callable[[], Any]) -> Any:
    """The result, or the exception."""
    try:
        return run()
    except ApiError as error:
        # Its frames, and those of the error behind it, hold the request: it is to be given up here and not in the event loop.
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
    except BaseException as error:
        return error


def _give_memory_back() -> None:
    """The C library keeps what was freed, for the next time: hundreds of megabytes after a few large requests."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


large_requests = LargeRequests()
