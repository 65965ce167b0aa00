"""Threads and file descriptors of the application's processes while nobody asks for anything."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.served.processes import kinds

# What a process may have more than before. Serve and Ray keep a connection and its poller for each process that one talks to,
# and close those to dead ones late, in steps of their own: what is looked for grows with the number of faults.
MORE_DESCRIPTORS = 8
MORE_THREADS = 4
# An event loop's pool of threads for short work has at most so many, and all of them once several clients take up long answers
# at the same moment.
POOL_THREADS = {"ingress": min(32, (os.cpu_count() or 1) + 4)}


@dataclass(frozen=True)
class Held:
    """What one process holds."""

    kind: str
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """What one process, ``whose``, holds more than before, or less."""

    kind: str
    whose: str
    descriptors: int
    threads: int

    @property
    def is_leak(self) -> bool:
        return self.descriptors > MORE_DESCRIPTORS or self.threads > MORE_THREADS + POOL_THREADS.get(self.kind, 0)

    def __str__(self) -> str:
        return f"{self.whose}: {self.descriptors:+d} file descriptors, {self.threads:+d} threads"


def held() -> dict[int, Held]:
    """By process id."""
    found = {}
    for pid, kind in kinds().items():
        with contextlib.suppress(OSError):
            found[pid] = Held(kind, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
    return found


def where_from(pid: int) -> dict[str, int]:
    """The descriptors of a process by what they are: sockets, pipes, files."""
    counts: dict[str, int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            name = os.readlink(link).split(":")[0].split("/")[-1] or "file"
            counts[name] = counts.get(name, 0) + 1
    return counts


def growth(before: dict[int, Held], now: dict[int, Held]) -> list[Growth]:
    """Of every process; one that was started since is compared with the most that its kind held."""
    most: dict[str, Held] = {}
    for one in before.values():
        known = most.get(one.kind, one)
        most[one.kind] = Held(one.kind, max(known.descriptors, one.descriptors), max(known.threads, one.threads))
    found = []
    for pid, one in now.items():
        then = before.get(pid) or most.get(one.kind)
        if then is not None:
            whose = f"{one.kind} {pid}{'' if pid in before else ' (new)'}"
            more = one.descriptors - then.descriptors, one.threads - then.threads
            found.append(Growth(one.kind, whose, *more))
    return found
