"""How long an engine worked, and how long its device did: their ratio is what the host costs."""

from __future__ import annotations


class StepTotals:
    """Sums since the start; times in seconds.

    Attributes:
        num_steps: steps that were saved.
        busy: wall time during which there was work: from the first pass after an idle time to the last one before the next.
        device: time of all saved steps on the device.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.busy = self.device = 0.0
        self._busy_from: float | None = None

    def begin(self, now: float) -> None:
        """A pass of the loop begins."""
        if self._busy_from is None:
            self._busy_from = now

    def saved(self, device_seconds: float) -> None:
        """It saved a step."""
        self.num_steps += 1
        self.device += device_seconds

    def end(self, now: float, has_work: bool) -> None:
        """It is over; without ``has_work`` the engine is idle from now on."""
        if self._busy_from is not None:
            self.busy += now - self._busy_from
        self._busy_from = now if has_work else None

    def figures(self) -> dict[str, float]:
        """For counters."""
        return {"num_saved_steps": self.num_steps, "busy_seconds": self.busy, "device_seconds": self.device}
