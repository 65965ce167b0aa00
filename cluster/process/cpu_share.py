"""How much of one core this process has used lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 10.0


class CpuShare:
    """Looks at the process's CPU time when it is asked, and compares with some seconds before.

    Args:
        window_s: over so long; nothing is said before half of it has passed.
        now, cpu_time: clocks; seconds.
    """

    def __init__(
        self,
        window_s: float = WINDOW_S,
        now: Callable[[], float] = time.monotonic,
        cpu_time: Callable[[], float] = time.process_time,
    ) -> None:
        self._window_s, self._now, self._cpu_time = window_s, now, cpu_time
        self._seen = deque([(now(), cpu_time())])

    def look(self) -> float | None:
        """Cores used, on average over the last seconds; all threads together, so it may be more than 1. None: not known yet."""
        at, spent = self._now(), self._cpu_time()
        self._seen.append((at, spent))
        while len(self._seen) > 2 and at - self._seen[1][0] >= self._window_s:
            self._seen.popleft()
        begun, before = self._seen[0]
        return (spent - before) / (at - begun) if at - begun >= self._window_s / 2 else None
