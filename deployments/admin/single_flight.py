"""A blocking question that many may ask at once: it is put once, on a thread of its own, and nobody waits for it forever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from cluster.api_errors import unavailable

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Calls ``look`` for whoever asks; those who ask while one call is under way get its result.

    Args:
        look: may block for any time; while it does, it holds this object's thread and no other.
        timeout_s: patience of each who asks.
        what: names in the error who did not answer.
    """

    def __init__(self, look: Callable[[], T], timeout_s: float, what: str) -> None:
        self._look = look
        self._timeout_s = timeout_s
        self._what = what
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._under_way: Future[T] | None = None

    async def result(self) -> T:
        """What ``look`` returns, or its exception.

        Raises:
            ApiError: 503, it did not answer in time.
        """
        with self._lock:
            if self._under_way is None or self._under_way.done():
                self._under_way = self._executor.submit(self._look)
            waiting = asyncio.wrap_future(self._under_way)
        # Not cancelled at the end of one's patience: others wait for the same call.
        done, _ = await asyncio.wait((waiting,), timeout=self._timeout_s)
        if not done:
            # Nobody will ask how it ended.
            waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise unavailable(f"{self._what} has not answered within {self._timeout_s:g} s")
        return waiting.result()
