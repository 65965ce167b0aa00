"""The GPU's events on the host's clock, for a recording of steps that shows both."""

from __future__ import annotations

import ctypes
import time


class GpuClock:
    """A base event whose host time is known; others are placed by their distance from it.

    The driver gives distances as float32 milliseconds: a microsecond is kept for 16 seconds after the base, ten for three
    minutes. So a recording begins with a base of its own.

    Args:
        driver: the CUDA driver's library.
        stream: an idle stream of the current context.
    """

    def __init__(self, driver: ctypes.CDLL, stream: ctypes.c_void_p) -> None:
        self._driver = driver
        self._base = ctypes.c_void_p()
        self._host_time, self.uncertainty_s = 0.0, float("inf")
        for _ in range(8):
            event = ctypes.c_void_p()
            check(driver.cuEventCreate(ctypes.byref(event), 0), "cuEventCreate")
            before = time.perf_counter()
            check(driver.cuEventRecord(event, stream), "cuEventRecord")
            check(driver.cuEventSynchronize(event), "cuEventSynchronize")
            after = time.perf_counter()
            # The event came somewhere between; the narrowest bracket tells best where.
            if (after - before) / 2 < self.uncertainty_s:
                event, self._base = self._base, event
                self._host_time, self.uncertainty_s = (before + after) / 2, (after - before) / 2
            if event:
                driver.cuEventDestroy_v2(event)

    def seconds(self, event: ctypes.c_void_p) -> float:
        """When ``event``, which has come, came: seconds of ``time.perf_counter``."""
        return self._host_time + elapsed_seconds(self._driver, self._base, event)

    def close(self) -> None:
        """Give the base event back."""
        self._driver.cuEventDestroy_v2(self._base)


def elapsed_seconds(driver: ctypes.CDLL, begin: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
    """Time between two events that have come; 0 if one was never recorded."""
    elapsed = ctypes.c_float()
    code = driver.cuEventElapsedTime(ctypes.byref(elapsed), begin, end)
    return elapsed.value / 1e3 if code == 0 else 0.0


def check(code: int, what: str) -> None:
    """Raise RuntimeError for a driver call that failed."""
    if code:
        raise RuntimeError(f"{what} failed with CUDA driver error {code}")
