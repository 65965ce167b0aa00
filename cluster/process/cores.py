"""How many cores this process may use: those that it may run on, and what its container is given of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """At least 1; a part of a core counts as one.

    Args:
        cgroups: where the kernel shows this container's limits, of either version.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), core_quota(cgroups))))


def core_quota(cgroups: Path) -> float:
    """Cores that the container is given; infinite where nothing bounds them."""
    try:
        if (both := cgroups / "cpu.max").exists():
            given, period = both.read_text().split()
        else:
            given, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(given) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max": no bound
        return math.inf
    return cores if cores > 0 else math.inf
