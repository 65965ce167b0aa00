"""Large requests of one ingress: few are worked on at once, beside the event loop, and what all of them hold is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cluster.api_errors import ApiError, overloaded

# Read and encoded within a few milliseconds: what is longer must not hold up other clients' tokens.
SMALL_BYTES = 2**13
SMALL_VALUES = 2**12
# Threads take turns with the event loop, five milliseconds each; encoding lets all run.
_AT_ONCE = 2
_MAX_WAITING = 256
_RETRY_AFTER_S = 2
# Together the bodies that are being read, wait or are worked on: so many bytes, or so many of the largest.
_MIN_BYTES_IN_FLIGHT = 64 * 2**20
_LARGEST_IN_FLIGHT = 4

_Result = TypeVar("_Result")


class Holding:
    """Bytes of one body, counted until ``LargeRequests.holding`` ends."""

    def __init__(self, work: LargeRequests) -> None:
        self._work = work
        self.num_bytes = 0

    def grow_to(self, num_bytes: int, max_bytes: int) -> None:
        """Count the body, which has ``num_bytes`` by now and may have ``max_bytes``.

        Raises:
            ApiError: 429, all bodies together would be too large.
        """
        new = num_bytes - self.num_bytes
        if self._work.bytes_in_flight + new > max(_MIN_BYTES_IN_FLIGHT, _LARGEST_IN_FLIGHT * max_bytes):
            raise overloaded("large request bodies take all the room that there is for them", _RETRY_AFTER_S)
        self.num_bytes += new
        self._work.bytes_in_flight += new


class LargeRequests:
    """Runs the work of large requests in threads of its own. Every method belongs to the event loop.

    Attributes:
        bytes_in_flight: of all bodies that are held.
    """

    def __init__(self) -> None:
        self.bytes_in_flight = 0
        self._num_open = 0
        self._threads = ThreadPoolExecutor(_AT_ONCE, "large-request")

    @contextlib.contextmanager
    def holding(self) -> Iterator[Holding]:
        """Count the bytes of one body as long as the context lasts."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.bytes_in_flight -= holding.num_bytes

    async def build(self, num_values: int, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """The result of ``work(in_pieces, *arguments)``, which has about ``num_values`` values: at once and not in pieces, or
        in a thread if they are many."""
        return work(False, *arguments) if num_values <= SMALL_VALUES else await self.run(work, True, *arguments)

    def check_queue(self) -> None:
        """Raise ApiError 429 if too many requests wait for their turn already."""
        if self._num_open >= _AT_ONCE + _MAX_WAITING:
            raise overloaded("too many large requests wait already", _RETRY_AFTER_S)

    async def run(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """The result of ``work(*arguments)``, in a thread once it is its turn; it must not keep the interpreter to itself."""
        self._num_open += 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, _outcome, work, arguments)
        try:
            outcome = await done
        finally:
            self._num_open -= 1
            if not self._num_open:
                self._threads.submit(_give_memory_back)
        if isinstance(outcome, ApiError):
            raise outcome
        return outcome


def _outcome(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return work(*arguments)
    except ApiError as error:
        # Its frames, and those of the error behind it, hold the request: it is to be given up here and not in the event loop.
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)


def _give_memory_back() -> None:
    """The C library keeps what was freed, for the next time: hundreds of megabytes after a few large requests."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


large_requests = LargeRequests()
