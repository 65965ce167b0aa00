"""How long engines take to start, from the decision for one until it serves: a pure function of what the controller sees."""

from __future__ import annotations

import statistics
from collections.abc import Set as AbstractSet
from typing import NamedTuple

# So many starts are looked back on.
MAX_STARTS = 8
# What is not there after so long met an obstacle, for example a cluster that is full: it says nothing of the next start.
LONGEST_START_S = 900.0


class Starts(NamedTuple):
    """What is remembered of them.

    Attributes:
        ready: ids of the engines that served when it was looked last; None before that.
        target: how many there were to be then.
        wanted_at: of engines that were decided for and do not serve yet, when that was.
        took_s: how long the last ones took, the latest last.
    """

    ready: tuple[str, ...] | None = None
    target: int = 0
    wanted_at: tuple[float, ...] = ()
    took_s: tuple[float, ...] = ()

    def start_s(self, unknown: float) -> float:
        """What a start is expected to take: the median of the last ones; ``unknown`` before the first."""
        return statistics.median(self.took_s) if self.took_s else unknown


def looked(starts: Starts, now: float, target: int, ready: AbstractSet[str]) -> Starts:
    """After another look.

    Args:
        now: seconds since 1970.
        target: how many engines there are to be.
        ready: ids of those that serve.
    """
    wanted = [at for at in starts.wanted_at if 0 <= now - at <= LONGEST_START_S]
    if starts.ready is None:
        return Starts(tuple(sorted(ready)), target, (), starts.took_s)
    came = len(ready - set(starts.ready))
    done, wanted = wanted[:came], wanted[came:]
    more = target - starts.target
    if more > 0:
        # From none Serve starts one by itself: it may serve before the higher target is seen.
        wanted += [now] * max(0, more - (came - len(done)))
    else:
        wanted = wanted[: max(0, len(wanted) + more)]
    took = (*starts.took_s, *(now - at for at in done))
    return Starts(tuple(sorted(ready)), target, tuple(wanted), took[-MAX_STARTS:])
