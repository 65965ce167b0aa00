"""When to plan the next step: late enough that requests which arrive meanwhile are in it, early enough that the device
never waits.

Launched at once, step N+1 would be fixed while N has only begun, and who arrives during N would wait for both. The clock
predicts how long N takes from the shortest of the last steps of its size, and leaves a margin before the end: what the host
needed lately from the moment it was to begin until it launched, and as much as predictions were too long lately. A device that
tells how far it is (the CPU counts its layers) makes the second part small: whoever has waited looks again.
"""

from __future__ import annotations

from collections import deque

# Until the host's time is known.
FIRST_LEAD_S = 0.003
# What follows the launch until the device has work, and what a sleep is late by beyond the worst of the last ones.
MARGIN_S = 0.0003
LEAD_FACTOR = 1.25
MIN_ERROR = 0.02
# A host that waited for this long saw the step end; one that did not may have come too late to see it: asking whether a
# step is over takes some hundredth of a millisecond by itself.
WAITED_S = 0.0003
# Where the device tells how far it is, the host waits for so much less than what seems to be left, and then looks again: two to
# four looks a step. The first one knows only how long other steps took, later ones the pace of this one. What is shorter than
# SHORTEST_WAIT_S is not worth another look.
UNTOLD_ERROR = 0.5
TOLD_ERROR = 0.25
SHORTEST_WAIT_S = 0.0003
# A clock that only waits move may be rounded to a moment before the one that was waited for.
_CLOCK_GRAIN_S = 1e-6
_REMEMBERED_STEPS = 8
_REMEMBERED_LEADS = 64


class StepClock:
    """Device times of past steps by their number of tokens, and when the device will be done with the present one.

    All times are seconds of the engine's clock.

    Attributes:
        ended_at: when the device ended the last step that was saved, as well as the host can tell.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[tuple[float, float]]] = {}
        self._leads: deque[float] = deque(maxlen=_REMEMBERED_LEADS)
        self._errors: deque[float] = deque(maxlen=_REMEMBERED_LEADS)
        self.ended_at = 0.0
        self._plan_at = 0.0
        self._left: float | None = None  # as it was told last of the present step

    @property
    def margin_s(self) -> float:
        """What the host is given, the error of the prediction apart."""
        return LEAD_FACTOR * max(self._leads, default=FIRST_LEAD_S) + MARGIN_S

    def launched(self, began_at: float, launched_at: float) -> None:
        """A step was launched by a pass of the loop that began at ``began_at``, or was to begin when it had waited."""
        self._leads.append(launched_at - (self._plan_at or began_at))
        self._plan_at, self._left = 0.0, None

    def launched_nothing(self) -> None:
        """A pass found nothing to plan: what the next one waits for is not the device."""
        self._plan_at, self._left = 0.0, None

    def saved(
        self,
        num_tokens: int,
        launched_at: float,
        waited_from: float,
        waited_at: float,
        device_seconds: float,
        forward_seconds: float = 0.0,
    ) -> None:
        """A step ended, the next one is on the device if it was launched.

        Args:
            waited_from, waited_at: while the host waited for its end.
            device_seconds: its time on the device.
            forward_seconds: those before its last layer was over; of use where ``seconds_to_wait`` is told what is left of them.
        """
        expected = self._expected(num_tokens)
        if expected:
            self._errors.append(max(0.0, 1 - device_seconds / expected))
        self._recent.setdefault(_size_class(num_tokens), deque(maxlen=_REMEMBERED_STEPS)).append(
            (device_seconds, forward_seconds)
        )
        if waited_at - waited_from < WAITED_S:
            waited_at = min(waited_at, max(launched_at, self.ended_at) + device_seconds)
        self.ended_at = waited_at

    def seconds_to_wait(
        self, now: float, num_tokens: int, launched_at: float, forward_left: float | None = None
    ) -> float:
        """How long from ``now`` the next plan may wait while the device computes a step of so many tokens; 0 if unknown.

        Args:
            forward_left: the share of the step's forward that is still to be computed; None where nobody tells.
        """
        if forward_left is not None:
            began_at = max(launched_at, self.ended_at)
            return self._wait_by_what_is_left(now, num_tokens, now - began_at, forward_left)
        expected = self._expected(num_tokens)
        if not expected:
            return 0.0
        margin = self.margin_s + max([MIN_ERROR, *self._errors]) * expected
        plan_at = max(launched_at, self.ended_at) + expected - margin
        wait = plan_at - now
        if wait < _CLOCK_GRAIN_S:
            return 0.0
        self._plan_at = plan_at
        return wait

    def _wait_by_what_is_left(self, now: float, num_tokens: int, elapsed: float, forward_left: float) -> float:
        """One wait takes what is surely left; the next look, if the step went on meanwhile, what turned out to be."""
        recent = self._recent.get(_size_class(num_tokens))
        if not recent or forward_left == self._left:
            return 0.0
        error = UNTOLD_ERROR if self._left is None else TOLD_ERROR
        self._left = forward_left
        left_s = min(device - (1 - forward_left) * forward for device, forward in recent)
        if forward_left < 1:
            rest_s = min(device - forward for device, forward in recent)
            left_s = min(left_s, elapsed * forward_left / (1 - forward_left) + rest_s)
        # Of what is left until the plan: a share of all that is left may be less than the margin long before the end.
        wait = (1 - error) * (left_s - self.margin_s)
        if wait < SHORTEST_WAIT_S:
            return 0.0
        self._plan_at = now + wait
        return wait

    def _expected(self, num_tokens: int) -> float | None:
        recent = self._recent.get(_size_class(num_tokens))
        return min(device for device, _ in recent) if recent else None


def _size_class(num_tokens: int) -> int:
    """Equal for numbers that agree in their first three binary digits: at most a quarter apart."""
    shift = max(0, num_tokens.bit_length() - 3)
    return num_tokens >> shift << shift
