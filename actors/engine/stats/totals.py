"""How long an engine worked, and how long its device did: their ratio is what the host costs."""

from __future__ import annotations


class StepTotals:
    """Sums since the start; times in seconds.

    Attributes:
        num_steps: steps that were saved.
        busy: wall time during which there was work: from the first pass after an idle time to the last one before the next.
        device: time of all saved steps on the device.
        late: of ``busy``, time in which the device had ended one step and the next was not launched.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.busy = self.device = self.late = 0.0
        self._busy_from: float | None = None
        self._began_at = 0.0

    def begin(self, now: float) -> None:
        """A pass of the loop begins."""
        if self._busy_from is None:
            self._busy_from = self._began_at = now

    def saved(self, device_seconds: float, launched_at: float, free_at: float) -> None:
        """It saved a step that was launched at ``launched_at``; the device had ended the one before at ``free_at``."""
        self.num_steps += 1
        self.device += device_seconds
        if free_at >= self._began_at:
            self.late += max(0.0, launched_at - free_at)

    def end(self, now: float, has_work: bool) -> None:
        """It is over; without ``has_work`` the engine is idle from now on."""
        if self._busy_from is not None:
            self.busy += now - self._busy_from
        self._busy_from = now if has_work else None

    def figures(self) -> dict[str, float]:
        """For counters."""
        return {
            "num_saved_steps": self.num_steps,
            "busy_seconds": self.busy,
            "device_seconds": self.device,
            "late_seconds": self.late,
        }
