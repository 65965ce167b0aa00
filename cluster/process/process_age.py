"""How long a process has been there, and who started it."""

from __future__ import annotations

import os
import time

_PARENT = 1
_START_TIME = 19  # of the fields behind the name in /proc/PID/stat: ticks from the machine's start to the process's


def process_age_s(pid: int | str = "self") -> float:
    """Seconds since the process ``pid`` of this machine began; 0 if there is none, or no ``/proc``."""
    ticks = _field(pid, _START_TIME)
    if ticks is None:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def parent_process(pid: int) -> int | None:
    """Id of the process that ``pid`` is a child of; None if there is no such process, or no ``/proc``."""
    return _field(pid, _PARENT)


def _field(pid: int | str, number: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b") ")[2].split()[number])
    except (OSError, ValueError, IndexError):
        return None
