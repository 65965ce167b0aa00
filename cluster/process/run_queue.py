"""How long this thread has waited for a core that others had."""

from __future__ import annotations

from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def run_queue_wait() -> float | None:
    """Seconds so far in which the calling thread could have run and had no core, also because a container's share of cores was
    used up; None where the kernel does not tell."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
