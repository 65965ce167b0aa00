"""How long a process has been there."""

from __future__ import annotations

import os
import time

_START_TIME = 19  # of the fields behind the name in /proc/PID/stat: ticks from the machine's start to the process's


def process_age_s(pid: int | str = "self") -> float:
    """Seconds since the process ``pid`` of this machine began; 0 if there is none, or no ``/proc``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            ticks = int(stat.read().rpartition(b") ")[2].split()[_START_TIME])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
