"""Stages of an engine's start: when each ended, how long each took, and both as a line for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In the order of their ends. All are of one machine, so that times are of one monotonic clock.
STAGES = ("replica", "runner", "paddle", "ops", "weights", "buffers", "warm_up", "ready", "seen", "first_token")
READY = "ready"
# Behind it an engine waits for requests; what the last two took says something only where a request waited.
_OF_EVERY_START = STAGES[: STAGES.index(READY) + 1]
_NAMES = {"warm_up": "warm-up", "first_token": "first token"}
_BAR_WIDTH = 20
# An engine that has just started says so for this long.
_RECENT_S = 60.0


def durations(began_at: float, ends: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage in ``ends``, from the end of the one before it; together they are the time to the last end.

    Args:
        began_at, ends: seconds of a monotonic clock. A stage that was over before its predecessor's end took nothing.
    """
    seconds, latest = {}, began_at
    for stage in STAGES:
        if stage in ends:
            seconds[stage] = max(0.0, ends[stage] - latest)
            latest = max(latest, ends[stage])
    return seconds


class StartStages:
    """What has ended so far.

    Args:
        began_at: seconds of the monotonic clock.
        ends: stages that ended before, and when.
    """

    def __init__(self, began_at: float, ends: Mapping[str, float] | None = None) -> None:
        self._began_at = began_at
        self._ends = dict(ends or {})
        self._detail = ""

    def end(self, stage: str, now: float) -> None:
        """``stage``, one of STAGES, is over; only the first call for a stage counts."""
        if stage not in STAGES:
            raise ValueError(f"stage: got {stage!r}, allowed: {', '.join(STAGES)}")
        self._detail = ""
        self._ends.setdefault(stage, now)

    def tell(self, detail: str) -> None:
        """What the stage that goes on does at this moment, for a person."""
        self._detail = detail

    def figures(self, now: float) -> dict[str, Any]:
        """``seconds`` by stage, those until the engine was ready together (until now if it is not), the stage that goes on (None
        once it is ready) and what it does (``detail``, empty where nothing was told), and how long it has been ready (None if it
        is not)."""
        ready_at = self._ends.get(READY)
        pending = [stage for stage in _OF_EVERY_START if stage not in self._ends]
        return {
            "seconds": {stage: round(s, 3) for stage, s in durations(self._began_at, self._ends).items()},
            "total_s": round((now if ready_at is None else ready_at) - self._began_at, 3),
            "stage": None if ready_at is not None else pending[0],
            "detail": self._detail,
            "ready_for_s": None if ready_at is None else round(now - ready_at, 3),
        }


def start_fields(start: Mapping[str, Any]) -> dict[str, str]:
    """``StartStages.figures`` as fields of a log line."""
    return {"total_s": f"{start['total_s']:.2f}"} | {f"{stage}_s": f"{s:.2f}" for stage, s in start["seconds"].items()}


def start_line(start: Mapping[str, Any]) -> str:
    """``StartStages.figures`` for a person: a bar while the engine starts, what its stages took just after that, then nothing."""
    took = ", ".join(f"{_NAMES.get(stage, stage)} {s:.1f}" for stage, s in start["seconds"].items())
    if start["stage"] is None:
        return f"started in {start['total_s']:.1f} s ({took})" if start["ready_for_s"] <= _RECENT_S else ""
    filled = _BAR_WIDTH * _OF_EVERY_START.index(start["stage"]) // len(_OF_EVERY_START)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    name = start.get("detail") or _NAMES.get(start["stage"], start["stage"])
    return f"[{bar}] {name} after {start['total_s']:.1f} s" + (f" ({took})" if took else "")
