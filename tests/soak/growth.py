"""What grew while faults happened: the medians of the last third of a soak against those of the first."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from statistics import median

from deployments.start.serve_environment import SERVE_ENVIRONMENT
from deployments.start.session_logs import MAX_KEPT
from tests.chaos.residue import MORE_DESCRIPTORS, MORE_THREADS, POOL_THREADS

# Of all looks, so many at the beginning are left out: pools and caches fill.
WARM_UP_SHARE = 0.15
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
    """

    names: str
    more: float
    share: float = 0.0
    ceiling: float = 0.0

    def allowed(self, earlier: float) -> float:
        return max(earlier + self.more + self.share * earlier, self.ceiling)


_KEPT_ACTORS = int(SERVE_ENVIRONMENT["RAY_maximum_gcs_destroyed_actor_cached_count"])
BOUNDS = (
    Bound("token sockets|pid files of ended processes", 1),
    # Old HAProxies that still have clients.
    Bound("pid files", 2),
    # Serve keeps what the last ten HAProxies said.
    Bound("files of the run folder", 4, ceiling=45),
    Bound("entries of the sockets folder|other files of the session|shared memory files", 4),
    Bound("zombies", 1),
    Bound("processes", 4),
    # One that has died is there for twenty seconds more.
    Bound("workers in /metrics", 4),
    Bound("lines of /metrics", 300, share=0.1),
    Bound("log files", 0, ceiling=MAX_KEPT + _FILES_A_PROCESS * _MOST_PROCESSES),
    Bound("actors in the GCS", 0, ceiling=_KEPT_ACTORS + _MOST_PROCESSES),
    Bound("nodes", 0),
    Bound("asyncio tasks of an ingress", 30),
    Bound("requests of an ingress|chosen engines of an ingress", 10),
    Bound("avoided engines of an ingress|token streams of an ingress", 3),
    # Ray's log monitor has at most 200 files open, those of dead processes too, before it closes them all.
    Bound("descriptors log monitor", 0, ceiling=260),
    # Connections of clients, and those to ingresses that come and go.
    Bound("descriptors (haproxy|proxy|ingress)", 40),
    Bound("descriptors .*", MORE_DESCRIPTORS),
    Bound("threads ingress", MORE_THREADS + POOL_THREADS["ingress"]),
    Bound("threads .*", MORE_THREADS),
    Bound("memory .*", 12, share=0.1),
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


def growths(record: Record, bounds: tuple[Bound, ...] = BOUNDS) -> list[str]:
    """One line for each count that grew by more than it may."""
    found = []
    for name, values in sorted(record.counts.items()):
        bound = next((bound for bound in bounds if re.fullmatch(bound.names, name)), None)
        both = medians(values)
        if bound is None or both is None:
            continue
        allowed = bound.allowed(both[0])
        if both[1] > allowed:
            found.append(f"{name}: {both[0]:g}, and {both[1]:g} in the end; at most {allowed:g} are expected")
    return found


def table(record: Record) -> str:
    """All counts in Markdown: the medians of the first and of the last third, and the most that was seen."""
    lines = ["| | first third | last third | most |", "|---|---|---|---|"]
    for name, values in sorted(record.counts.items()):
        both = medians(values)
        if both is not None:
            most = max(one for one in values if one is not None)
            lines.append(f"| {name} | {both[0]:g} | {both[1]:g} | {most:g} |")
    return "\n".join(lines)
