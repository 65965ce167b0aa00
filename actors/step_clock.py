"""When to plan the next step: late enough that requests which arrive meanwhile are in it, early enough that the device
never waits.

Launched at once, step N+1 would be fixed while N has only begun, and who arrives during N would wait for both. The clock
predicts how long N takes from the shortest of the last steps of its size, and leaves the host a margin before the end.
"""

from __future__ import annotations

from collections import deque

# What planning and launching take at most, and how wrong a prediction may be.
MARGIN_S = 0.003
MARGIN_SHARE = 0.15
_REMEMBERED = 8


class StepClock:
    """Device times of past steps by their number of tokens, in powers of two."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Enter the device time of a step that was saved."""
        self._recent.setdefault(num_tokens.bit_length(), deque(maxlen=_REMEMBERED)).append(seconds)

    def seconds_to_wait(self, num_tokens: int, elapsed: float) -> float:
        """How long the next plan may wait while a step of ``num_tokens`` has run for ``elapsed`` seconds; 0 if unknown."""
        recent = self._recent.get(num_tokens.bit_length())
        if not recent:
            return 0.0
        expected = min(recent)
        return max(0.0, expected - max(MARGIN_S, MARGIN_SHARE * expected) - elapsed)
