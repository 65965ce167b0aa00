"""How many answers were within a latency target."""

from __future__ import annotations

from cluster.scaling.inputs import TargetCount
from cluster.scaling.recent import RecentSum

_MEMORY_S = 30.0
# Of one answer so much is left after two minutes: then nothing is known any more.
_LEAST = 0.02


class LatencyTarget:
    """Counts times against ``target_s`` seconds. Belongs to one event loop.

    Attributes:
        target_s: may be changed; counts go on.

    Args:
        counter: with a tag ``met``.
    """

    def __init__(self, target_s: float, counter) -> None:
        self.target_s = target_s
        self._counter = counter
        self._counts = {True: 0, False: 0}
        self._recent = {True: RecentSum(_MEMORY_S), False: RecentSum(_MEMORY_S)}

    def count(self, seconds: float) -> None:
        """An answer took so long."""
        self._count(seconds <= self.target_s)

    def count_missing(self, waited_s: float, failed: bool) -> None:
        """It never came; a client that left before the target says nothing."""
        if failed or waited_s > self.target_s:
            self._count(False)

    def _count(self, met: bool) -> None:
        self._counts[met] += 1
        self._recent[met].add(1)
        self._counter.inc(1, {"met": "yes" if met else "no"})

    @property
    def found(self) -> TargetCount:
        """So far."""
        met, missed = self._recent[True].value, self._recent[False].value
        share = met / (met + missed) if met + missed >= _LEAST else None
        return TargetCount(self._counts[True], self._counts[False], share)
