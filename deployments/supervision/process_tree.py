"""What a process has started, directly or not, and how all of it ends (on Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE_S = 0.01


def adopt_orphans() -> None:
    """From now on what a descendant leaves behind when it ends becomes this process's child, however it was started."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> dict[int, int] | None:
    """Exit codes by process id, negative for signals, of children that have ended; None once there are no children."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended or None
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def descendants(pid: int) -> list[int]:
    """Those that run, the nearest first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [pid]
    for parent_pid in found:
        found += children.get(parent_pid, [])
    return found[1:]


def end_descendants(timeout_s: float) -> bool:
    """Kill all that this process has started; whether it is gone within ``timeout_s``. Whoever adopts orphans misses none."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if reap() is None:
            return True
        time.sleep(_PAUSE_S)
    return False


def remove_all(patterns: list[str]) -> None:
    """Files, sockets, and folders with all that is in them."""
    for path in (path for pattern in patterns for path in glob.glob(pattern)):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
