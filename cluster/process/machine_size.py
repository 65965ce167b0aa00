"""CPUs and memory that there are for a server on this machine: of a container, what it is given."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from cluster.process.cores import CGROUPS, core_quota

# Files of the kernel's two versions.
_MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def ray_cpus(cgroups: Path = CGROUPS) -> int:
    """CPUs as Ray counts them on a node that is not told their number: whole ones of a container's quota, else all."""
    count = os.cpu_count() or 1
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):
        return count
    bounds = [core_quota(cgroups)]
    # Of a set of CPUs Ray looks at the first version's file alone.
    if (cgroups / "cpuset" / "cpuset.cpus").exists():
        bounds.append(len(os.sched_getaffinity(0)))
    least = min(bounds)
    return count if math.isinf(least) else math.floor(least)


def usable_memory(cgroups: Path = CGROUPS) -> int:
    """Bytes of memory of this machine, or of this container where it is given less."""
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
            bounds.append(int((cgroups / name).read_text()))
    return min(bounds)
