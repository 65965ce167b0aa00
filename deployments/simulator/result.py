"""What a simulation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.simulator.arrivals import Array

PARTS = 120


@dataclass
class Result:
    """Of one policy on one recording.

    Attributes:
        requests: simulated, expected ones for rates.
        attainment: share of the requests within both objectives.
        ttft_attainment, tpot_attainment: within each.
        engine_hours: paid, starts and drains included.
        peak_engines: most that were paid for at once.
        ttft_s, tpot_ms: percentiles by name (p50, p95, p99).
        engines: (second, engines paid for) where that changes, or in windows.
        attained: share of the requests within both objectives among those that came in each of equal parts of the time.
        num_lost: engines that were lost to events.
        span_s: seconds that were paid for: until the last answer, or the end of the recording if that is later.
    """

    requests: float
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    engine_hours: float
    peak_engines: int
    num_starts: int
    ttft_s: dict[str, float] = field(default_factory=dict)
    tpot_ms: dict[str, float] = field(default_factory=dict)
    engines: list[tuple[float, int]] = field(default_factory=list)
    num_lost: int = 0
    attained: list[float] = field(default_factory=list)
    span_s: float = 0.0


def percentiles(values: Array, weights: Array | None = None) -> dict[str, float]:
    """p50, p95 and p99 of values that count ``weights`` times."""
    if not len(values):
        return {}
    order = np.argsort(values)
    share = np.cumsum(np.ones(len(values)) if weights is None else weights[order])
    picks = np.searchsorted(share, np.array([0.5, 0.95, 0.99]) * share[-1])
    found = values[order][np.minimum(picks, len(values) - 1)]
    return {name: round(float(value), 6) for name, value in zip(("p50", "p95", "p99"), found)}


def shares_over_time(at: NDArray[Any], is_met: NDArray[Any], weights: NDArray[Any], duration_s: float) -> list[float]:
    """``Result.attained``: of requests that came at ``at`` and count ``weights`` times; nan where none came."""
    parts = np.minimum((at / max(duration_s, 1e-9) * PARTS).astype(int), PARTS - 1)
    came = np.bincount(parts, weights, PARTS)
    met = np.bincount(parts, weights * is_met, PARTS)
    return [float(m / c) if c else float("nan") for m, c in zip(met, came)]
