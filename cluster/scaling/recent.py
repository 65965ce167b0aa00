"""Sums over about the last seconds: what came earlier counts ever less."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class RecentSum:
    """Sum of what was added, each weighed by ``exp(-age / memory_s)``.

    Args:
        memory_s: what is older counts less than 37 percent.
        now: a clock in seconds.
    """

    def __init__(self, memory_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.memory_s = memory_s
        self._now = now
        self._value = 0.0
        self._at = now()

    def add(self, amount: float) -> None:
        self._value, self._at = self.value + amount, self._now()

    @property
    def value(self) -> float:
        return self._value * math.exp((self._at - self._now()) / self.memory_s)

    @property
    def per_s(self) -> float:
        """Of a steady stream, how much is added in a second."""
        return self.value / self.memory_s
