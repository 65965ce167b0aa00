"""Rules that the policy is compared with. They know what the policy knows, and the same engines."""

from __future__ import annotations

import math

from cluster.scaling.capacity import RequestShape, request_work_s, requests_per_s
from deployments.simulator.scaler import View
from deployments.simulator.setup import SimulatorSettings


class ServeDefault:
    """Ray Serve's: the mean of ongoing requests over 30 s, per target; 30 s before it goes up, 600 s before it goes down.

    Args:
        ongoing: target of ongoing requests an engine.
    """

    def __init__(self, settings: SimulatorSettings, ongoing: float) -> None:
        self._policy, self._ongoing = settings.policy, ongoing
        self._seen: list[tuple[float, float]] = []
        self._since, self._way = 0.0, 0

    def restart(self, keeps_state: bool) -> None:
        self._seen, self._way = [], 0

    def target(self, view: View) -> int:
        self._seen = [(at, n) for at, n in self._seen if at > view.now - 30.0] + [(view.now, view.num_in_system)]
        mean = sum(n for _, n in self._seen) / len(self._seen)
        wanted = math.ceil(mean / self._ongoing - 1e-9)
        wanted = min(max(wanted, self._policy.min_replicas), self._policy.max_replicas)
        way = (wanted > view.target) - (wanted < view.target)
        if way != self._way:
            self._way, self._since = way, view.now
        if way and view.now - self._since >= (30.0 if way > 0 else 600.0):
            self._way = 0
            return wanted
        return view.target


class QueueTarget:
    """A horizontal autoscaler of Kubernetes on requests in the system: every 15 s, a tolerance of 10 %, down to the largest wish
    of five minutes.

    Args:
        ongoing: target of requests an engine.
    """

    def __init__(self, settings: SimulatorSettings, ongoing: float) -> None:
        self._policy, self._ongoing = settings.policy, ongoing
        self._wishes: list[tuple[float, int]] = []
        self._last = -math.inf

    def restart(self, keeps_state: bool) -> None:
        """It runs elsewhere."""

    def target(self, view: View) -> int:
        if view.now - self._last < 15.0:
            return view.target
        self._last = view.now
        ratio = view.num_in_system / max(view.num_ready, 1) / self._ongoing
        wish = view.num_ready if abs(ratio - 1) <= 0.1 else math.ceil(view.num_in_system / self._ongoing)
        wish = min(max(wish, self._policy.min_replicas), self._policy.max_replicas)
        self._wishes = [(at, n) for at, n in self._wishes if at > view.now - 300.0] + [(view.now, wish)]
        return wish if wish > view.target else min(view.target, max(n for _, n in self._wishes))


class RegressionGuard:
    """As Dynamo's planner: up when the predicted time a token misses its target, down by one only if with one engine fewer it
    stays under 80 % of it; looked at every 30 s, with a floor from the arrivals of three minutes. It knows true step times."""

    def __init__(self, settings: SimulatorSettings, shape: RequestShape) -> None:
        self._settings, self._shape = settings, shape
        self._last = -math.inf
        self._rates: list[tuple[float, float]] = []

    def restart(self, keeps_state: bool) -> None:
        """It runs elsewhere."""

    def _tpot_s(self, rate: float, engines: int) -> float:
        work = rate / max(engines, 1) * request_work_s(self._settings.costs, self._shape)
        return self._settings.costs.step / (1 - work) if work < 1 else math.inf

    def target(self, view: View) -> int:
        self._rates = [(at, r) for at, r in self._rates if at > view.now - 180.0] + [(view.now, view.arrivals_per_s)]
        if view.now - self._last < 30.0:
            return view.target
        self._last = view.now
        policy = self._settings.policy
        limit = policy.slo_tpot_ms / 1e3
        served = requests_per_s(self._settings.costs, self._shape, limit, self._settings.rows_limit(self._shape))
        floor = math.ceil(sum(r for _, r in self._rates) / len(self._rates) / served)
        target = view.target
        if self._tpot_s(view.arrivals_per_s, target) > limit:
            target = max(target + 1, math.ceil(view.arrivals_per_s / served))
        elif self._tpot_s(view.arrivals_per_s, target - 1) < 0.8 * limit:
            target -= 1
        return min(max(target, floor, policy.min_replicas), policy.max_replicas)


class Schedule:
    """Knows the future: so many engines at each time."""

    def __init__(self, engines: list[int], bin_s: float) -> None:
        self._engines, self._bin_s = engines, bin_s

    def restart(self, keeps_state: bool) -> None:
        """The future is written."""

    def target(self, view: View) -> int:
        return self._engines[min(int(view.now / self._bin_s), len(self._engines) - 1)]
