"""The time that an engine lives in: the machine's, or a simulation's."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some moment, and waiting for some of them."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class WaitingClock(Clock, Protocol):
    """One that a simulated device's steps end by."""

    def wait_until(self, then: float) -> None:
        """Nothing happens if that is past."""


class HostClock:
    """``time.perf_counter``, which the stamps of the model runner are of, too."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait_until(self, then: float) -> None:
        time.sleep(max(0.0, then - self.now()))
