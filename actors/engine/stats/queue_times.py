"""How long requests waited in an engine before they got a slot."""

from __future__ import annotations

from collections import OrderedDict

from cluster.observability.histogram import Histogram
from cluster.observability.vllm_metrics import REQUEST_BUCKETS_S

# Not every engine is asked: one in a process of the library is not.
_MOST_WAITED = 4096


class QueueTimes:
    """Belongs to the engine's thread.

    Attributes:
        found: a tuple of the histogram's counts and the sum in seconds, replaced as a whole, so that any thread may read it.
    """

    def __init__(self) -> None:
        self._histogram = Histogram(REQUEST_BUCKETS_S)
        self._came_at: dict[str, float] = {}
        self._waited: OrderedDict[str, float] = OrderedDict()
        self.found: tuple[tuple[int, ...], float] = tuple(self._histogram.counts), 0.0

    def came(self, request_id: str, now: float) -> None:
        """A request waits from now on."""
        self._came_at[request_id] = now

    def begun(self, request_id: str, now: float) -> None:
        """It got a slot; another one, after a preemption, does not count."""
        came_at = self._came_at.pop(request_id, None)
        if came_at is not None:
            self._waited[request_id] = now - came_at
            if len(self._waited) > _MOST_WAITED:
                self._waited.popitem(last=False)
            self._histogram.observe(now - came_at)
            self.found = tuple(self._histogram.counts), self._histogram.total

    def gone(self, request_id: str) -> None:
        """It is given up."""
        self._came_at.pop(request_id, None)
        self._waited.pop(request_id, None)

    def take(self, request_id: str) -> float | None:
        """Seconds that it waited, once; None if it has no slot yet, or was not asked about for thousands of others. For any
        thread, and for each request that begins."""
        return self._waited.pop(request_id, None)
