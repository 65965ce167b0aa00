"""What recorded load costs on a fleet that never changes, under the policy, and at least: all paid for over the same span."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deployments.simulator.result import Result
from deployments.simulator.study import Progress, Study

FIXED, POLICY, ORACLE = "smallest fixed fleet", "this policy", "oracle, at least"


@dataclass(frozen=True)
class FleetPlan:
    """
    Attributes:
        span_s: that every fleet is paid for: from the first request until the slowest of the fleets has given its last answer.
        fixed: the smallest fixed fleet over it; None if none of twice the policy's peak is enough.
        policy: over it.
        engine_hours: by name.
    """

    span_s: float
    fixed: Result | None
    policy: Result
    engine_hours: dict[str, float]

    @property
    def mean_engines(self) -> dict[str, float]:
        return {name: hours * 3600 / self.span_s for name, hours in self.engine_hours.items()}


def planned(study: Study, told: Callable[[str], Progress] = lambda name: lambda share: None) -> FleetPlan:
    """Args:
    told: returns what is told the share that is done of the part of this name.
    """
    policy = study.run(progress=told(POLICY))
    fixed = study.smallest_fixed_fleet(policy.peak_engines, told("fixed fleets"))
    span_s = policy.span_s
    hours = {}
    if fixed is not None:
        span_s = max(span_s, fixed.span_s)
        # It stays as it is after its last answer.
        hours[FIXED] = fixed.peak_engines * span_s / 3600
    if policy.span_s < span_s:
        policy = study.run(progress=told("this policy, as long"), until_s=span_s)
    hours |= {POLICY: policy.engine_hours, ORACLE: study.bound.proved_hours}
    return FleetPlan(span_s, fixed, policy, hours)
