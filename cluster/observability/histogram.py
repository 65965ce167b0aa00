"""A histogram of a few counters: one thread observes, any may read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """How often values up to each bound came, as Prometheus counts them.

    Attributes:
        bounds: upper bounds of the buckets, ascending; one more bucket takes what is larger.
        counts: of each bucket alone.
        total: sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One value came."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
