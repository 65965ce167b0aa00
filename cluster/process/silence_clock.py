"""Whether something that should go on still does, judged by one's own clock.

A process that was stopped (SIGSTOP) or starved and then continues finds that much time has passed for everybody. It must not
take that for the silence of others: only as much time counts as the watcher itself was awake for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TICK_S = 0.25
_LONGEST_TICK_S = 2 * TICK_S


class SilenceClock:
    """Counts seconds of silence; call ``tick`` every TICK_S seconds.

    Attributes:
        silent_s: how long nothing was heard, in time that the watcher was awake for.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.silent_s = 0.0
        self._now = now
        self._last_tick = now()

    def heard(self) -> None:
        """Whatever is watched gave a sign of life."""
        self.silent_s = 0.0

    def tick(self) -> float:
        """Let the time since the last tick count; returns ``silent_s``."""
        now = self._now()
        self.silent_s += min(now - self._last_tick, _LONGEST_TICK_S)
        self._last_tick = now
        return self.silent_s
