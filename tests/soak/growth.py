"""What grew while faults happened: by a step, seen in the medians of the first and the last third of a soak, or steadily, seen in
its slope. A slow leak stays below any bound on what a step may be for as long as a soak takes, and fills a machine in a week."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from deployments.start.run_files.session_logs import MAX_KEPT
from deployments.start.serve_environment import SERVE_ENVIRONMENT
from tests.chaos.served.residue import MORE_DESCRIPTORS, MORE_THREADS, POOL_THREADS

# Of all looks, so many at the beginning are left out: pools and caches fill.
WARM_UP_SHARE = 0.15
# In less, what a process takes while it warms up looks like a slope.
_SHORTEST_TREND_S = 300.0
# The slope is believed to be steeper than three of its standard deviations below what was found.
_DEVIATIONS = 3.0
_FILES_A_PROCESS = 4
_MOST_PROCESSES = 40


@dataclass(frozen=True)
class Bound:
    """How much a count may grow.

    Attributes:
        names: of counts; the first bound whose pattern matches the whole name holds.
        more: by how much the later median may exceed the earlier one; what a fault leaves until its successor has started.
        share: of the earlier median, besides.
        ceiling: up to which it may grow in any case.
        per_hour: how much it may grow in an hour of faults, steadily; about twice what ``docs/lab/soak.json`` shows for certain.
    """

    names: str
    more: float
    share: float = 0.0
    ceiling: float = 0.0
    per_hour: float = 12.0

    def allowed(self, earlier: float) -> float:
        return max(earlier + self.more + self.share * earlier, self.ceiling)


_KEPT_ACTORS = int(SERVE_ENVIRONMENT["RAY_maximum_gcs_destroyed_actor_cached_count"])
BOUNDS = (
    Bound("token sockets", 1),
    Bound("pid files that starts left", 0),
    # Old HAProxies that still have clients, and those that have ended since the last start.
    Bound("pid files", 2),
    # Serve keeps what the last ten HAProxies said.
    Bound("files of the run folder", 4, ceiling=45),
    Bound("entries of the sockets folder|other files of the session|shared memory files", 4),
    Bound("zombies", 1),
    Bound("processes", 4),
    # One that has died is there for twenty seconds more.
    Bound("workers in /metrics", 4),
    Bound("lines of /metrics", 300, share=0.1, per_hour=800),
    Bound("log files", 0, ceiling=MAX_KEPT + _FILES_A_PROCESS * _MOST_PROCESSES),
    Bound("actors in the GCS", 0, ceiling=_KEPT_ACTORS + _MOST_PROCESSES),
    Bound("nodes", 0),
    Bound("asyncio tasks of an ingress", 30, per_hour=60),
    Bound("requests of an ingress|chosen engines of an ingress", 10, per_hour=30),
    Bound("avoided engines of an ingress|token streams of an ingress", 3),
    # Ray's log monitor has at most 200 files open, those of dead processes too, before it closes them all.
    Bound("descriptors log monitor", 0, ceiling=260),
    # Connections of clients, and those to ingresses that come and go.
    Bound("descriptors (haproxy|proxy|ingress)", 40, per_hour=60),
    Bound("descriptors .*", MORE_DESCRIPTORS, per_hour=30),
    Bound("threads ingress", MORE_THREADS + POOL_THREADS["ingress"]),
    Bound("threads .*", MORE_THREADS),
    # Counters of dead processes, entries of dead actors and placement groups: Ray's own, and by little a fault.
    Bound("memory agent", 12, share=0.1, per_hour=150),
    Bound("memory (gcs|controller)", 12, share=0.1, per_hour=70),
    # Each new one fills its caches.
    Bound("memory ingress", 12, share=0.1, per_hour=90),
    Bound("memory .*", 12, share=0.1, per_hour=20),
)


@dataclass
class Record:
    """What was seen, look by look.

    Attributes:
        seconds, faults, requests: of each look: when, and how many had happened and ended by then.
        counts: by name, a value a look; None where it could not be seen.
    """

    seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    counts: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, second: float, faults: int, requests: int, counts: dict[str, float]) -> None:
        for name in counts.keys() - self.counts.keys():
            self.counts[name] = [None] * len(self.seconds)
        self.seconds.append(round(second, 1))
        self.faults.append(faults)
        self.requests.append(requests)
        for name, values in self.counts.items():
            value = counts.get(name)
            values.append(None if value is None else round(value, 1))

    def to_json(self) -> str:
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        return cls(**json.loads(text))


def medians(values: list[float | None]) -> tuple[float, float] | None:
    """Of the first and the last third after the warm-up; None if there is too little of either."""
    warm = values[round(len(values) * WARM_UP_SHARE) :]
    third = len(warm) // 3
    first, last = ([one for one in part if one is not None] for part in (warm[:third], warm[-third:] if third else []))
    return (median(first), median(last)) if first and last else None


@dataclass(frozen=True)
class Slope:
    """Growth in an hour.

    Attributes:
        found: the median of the slopes between all pairs of looks (Theil-Sen), which outliers do not move.
        least: what it is at least, for all that is known.
    """

    found: float
    least: float


def slope(seconds: list[float], values: list[float | None]) -> Slope | None:
    """Of a count after the warm-up; None if that was seen for too short a time."""
    first = round(len(values) * WARM_UP_SHARE)
    seen = [(second, one) for second, one in zip(seconds[first:], values[first:]) if one is not None]
    if not seen or seen[-1][0] - seen[0][0] < _SHORTEST_TREND_S:
        return None
    hours, counts = np.array(seen).T / [[3600.0], [1.0]]
    earlier, later = np.triu_indices(len(seen), 1)
    slopes = np.sort((counts[later] - counts[earlier]) / (hours[later] - hours[earlier]))
    # Kendall's statistic is about normal; its deviation says how many pairs from the middle the slope may be (Sen 1968).
    count = len(seen)
    pairs = _DEVIATIONS * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return Slope(float(np.median(slopes)), float(slopes[max(0, round((len(slopes) - pairs) / 2))]))


def growths(record: Record, bounds: tuple[Bound, ...] = BOUNDS) -> list[str]:
    """One line for each count that grew by more than it may, or faster."""
    found = []
    for name, values in sorted(record.counts.items()):
        bound = next((bound for bound in bounds if re.fullmatch(bound.names, name)), None)
        both = medians(values)
        if bound is None or both is None:
            continue
        allowed = bound.allowed(both[0])
        if both[1] > allowed:
            found.append(f"{name}: {both[0]:g}, and {both[1]:g} in the end; at most {allowed:g} are expected")
        steady = slope(record.seconds, values)
        if steady is not None and steady.least > bound.per_hour and both[1] > bound.ceiling:
            found.append(
                f"{name}: {steady.found:.0f} more an hour, {steady.least:.0f} at least; {bound.per_hour:g} may be"
            )
    return found


def table(record: Record) -> str:
    """All counts in Markdown: the medians of the first and of the last third, the most that was seen, and the slope."""
    lines = ["| | first third | last third | most | an hour |", "|---|---|---|---|---|"]
    for name, values in sorted(record.counts.items()):
        both = medians(values)
        if both is not None:
            most = max(one for one in values if one is not None)
            steady = slope(record.seconds, values)
            an_hour = "" if steady is None else f"{steady.found:.0f}"
            lines.append(f"| {name} | {both[0]:g} | {both[1]:g} | {most:g} | {an_hour} |")
    return "\n".join(lines)
