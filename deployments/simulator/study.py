"""A recording from file to figures: scaled, bounded by the oracle, run under a policy."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BiremeError
from cluster.scaling.capacity import requests_per_s
from cluster.scaling.traces import read_trace
from deployments.simulator.arrivals import Arrivals, arrivals_of, scaled, single_requests
from deployments.simulator.compare import QueueTarget, RegressionGuard, Schedule, ServeDefault
from deployments.simulator.events import Event
from deployments.simulator.oracle import Bound, factor_for, lower_bound
from deployments.simulator.rates.rates_fleet import simulate_rates
from deployments.simulator.requests.exact_engine import ExactEngine
from deployments.simulator.requests.fluid_engine import FluidEngine
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.result import Result
from deployments.simulator.scaler import PolicyScaler, Scaler
from deployments.simulator.setup import SimulatorSettings

Progress = Callable[[float], None]
# A shorter recording says nothing of a rate that could be scaled.
_LEAST_S = 60.0
_LEAST_REQUESTS = 100
# Rates of more requests than that flow; of fewer, single ones come.
_MOST_SINGLE = 1_000_000
# What the exact fidelity is for: every token of every request is planned.
MOST_EXACT_REQUESTS, MOST_EXACT_ENGINES = 20_000, 50
_SPARE = 1.1
_FIRST_S = 120.0


class Study:
    """One recording on one kind of fleet.

    Attributes:
        factor: by which the load was scaled.
        load: after that.
        bound: the oracle's.

    Args:
        engines_mean: the oracle's mean engines to scale the load for; None leaves the load as it is.
        fidelity: one of ``setup.FIDELITIES``.
        events: what happens to the fleet, in order of time.
        part: (second of the recording to begin at, seconds that are taken or None).

    Raises:
        BiremeError: the recording cannot be read, is too much for the exact fidelity, or ends before an event.
    """

    def __init__(
        self,
        trace: Path,
        settings: SimulatorSettings,
        engines_mean: float | None,
        fidelity: str = "fluid",
        events: Sequence[Event] = (),
        part: tuple[float, float | None] = (0.0, None),
    ) -> None:
        self.fidelity, self.events = fidelity, events
        if fidelity == "exact":
            policy = settings.policy
            settings = replace(
                settings, policy=replace(policy, max_replicas=min(policy.max_replicas, MOST_EXACT_ENGINES))
            )
        self.settings = settings
        recorded = arrivals_of(read_trace(trace, *part), settings)
        is_long = recorded.duration_s >= _LEAST_S and recorded.count >= _LEAST_REQUESTS
        self.factor = factor_for(recorded, settings, engines_mean) if engines_mean and is_long else 1.0
        self.load: Arrivals = scaled(recorded, self.factor, settings)
        if self.load.count <= _MOST_SINGLE:
            self.load = single_requests(self.load, settings)
        if fidelity == "exact" and self.load.count > MOST_EXACT_REQUESTS:
            raise BiremeError(
                f"{self.load.count:,.0f} requests are too many for the exact fidelity, which takes {MOST_EXACT_REQUESTS:,}: "
                "take a part of the recording (--begin, --seconds) or fewer engines (--engines-mean)",
                "--fidelity",
            )
        late = [event for event in events if event.at > self.load.duration_s]
        if late:
            raise BiremeError(
                f"{late[0].event} at {late[0].at:g} s: what is simulated of the recording ends at {self.load.duration_s:g} s",
                "--event",
            )
        self.bound: Bound = lower_bound(self.load, settings)
        policy = settings.policy
        initial = math.ceil(self._first_demand() * _SPARE)
        self.initial = min(max(initial, policy.min_replicas, 0), policy.max_replicas)

    def _first_demand(self) -> float:
        """Engines of the service that was running when the recording began: for the arrivals of its first two minutes."""
        load, settings = self.load, self.settings
        if load.rates is not None:
            first = float(load.rates[0])
        else:
            seconds = min(max(load.duration_s, 1.0), _FIRST_S)
            first = float(np.count_nonzero(load.at < seconds)) / seconds
        shape, tpot_s = load.shape, settings.policy.slo_tpot_ms / 1e3
        return first / requests_per_s(settings.costs, shape, tpot_s, settings.rows_limit(shape))

    def run(
        self,
        scaler: Scaler | None = None,
        progress: Progress = lambda share: None,
        initial: int | None = None,
        until_s: float = 0.0,
    ) -> Result:
        """Of ``scaler``, by default the policy, with ``initial`` engines, by default as many as the first requests need.

        Args:
            until_s: second until which the fleet is there, if single requests have their answers before. Rates end with the
                recording.
        """
        scaler, first = scaler or PolicyScaler(self.settings), self.initial if initial is None else initial
        if self.load.rates is not None:
            return simulate_rates(self.load, self.settings, scaler, first, progress, self.events)
        make = ExactEngine if self.fidelity == "exact" else FluidEngine
        return simulate_requests(self.load, self.settings, scaler, first, progress, self.events, make, until_s=until_s)

    def smallest_fixed_fleet(self, enough: int, progress: Progress = lambda share: None) -> Result | None:
        """The fewest engines, not fewer than ``min_replicas``, that reach the share if their number never changes, by halving;
        None if more than twice ``enough`` would be needed."""
        # Its mean says nothing of how few are enough: a loose objective leaves work until after the last request.
        fewest = max(1, self.settings.policy.min_replicas)
        most = max(2 * enough, fewest)
        runs: dict[int, Result] = {}

        def reaches(count: int) -> bool:
            runs[count] = self.run(Schedule([count], self.bound.bin_s), initial=count)
            progress(min(1.0, len(runs) / (most - fewest + 1).bit_length()))
            return runs[count].attainment >= self.settings.policy.slo_share

        found = fewest + bisect_left(range(fewest, most + 1), True, key=reaches)
        return runs[found] if found <= most else None

    def others(self) -> dict[str, Scaler]:
        """What the policy is compared with, by name. Queue targets are the requests that an engine holds at its objective."""
        shape, settings = self.load.shape, self.settings
        tpot_s = settings.policy.slo_tpot_ms / 1e3
        served = requests_per_s(settings.costs, shape, tpot_s, settings.rows_limit(shape))
        ongoing = min(settings.rows_limit(shape), max(1.0, served * shape.output_tokens * tpot_s))
        return {
            "Serve's default": ServeDefault(settings, 0.8 * ongoing),
            "target queue": QueueTarget(settings, 0.8 * ongoing),
            "regression, 80 % guard": RegressionGuard(settings, shape),
        }

    def upper_bound(self, progress: Progress = lambda share: None) -> Result | None:
        """The cheapest of some schedules of the future that reaches the share; None if none does."""
        for spare in (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0):
            result = self.run(Schedule(self._schedule(spare), self.bound.bin_s), progress)
            if result.attainment >= self.settings.policy.slo_share:
                return result
        return None

    def _schedule(self, spare: float) -> list[int]:
        wanted = np.ceil(self.bound.demand * spare)
        ahead = max(1, math.ceil((max(self.settings.start_times_s) + 2.0) / self.bound.bin_s))
        held = np.array([wanted[max(0, i - 1) : i + ahead + 1].max() for i in range(len(wanted))])
        policy = self.settings.policy
        return np.clip(held, policy.min_replicas, policy.max_replicas).astype(int).tolist()

    def report(self, result: Result) -> dict[str, Any]:
        """One object for ``--json``; times in seconds unless their names say otherwise."""
        found = asdict(result)
        del found["engines"], found["attained"]
        return {
            **found,
            "oracle_engine_hours": self.bound.engine_hours,
            "oracle_proved_engine_hours": self.bound.proved_hours,
            "oracle_mean_engines": self.bound.mean_engines,
            "over_oracle": result.engine_hours / self.bound.engine_hours if self.bound.engine_hours else None,
            "load_factor": self.factor,
            "duration_s": self.load.duration_s,
            "fidelity": self.fidelity,
            "slo_ttft_s": self.settings.policy.slo_ttft_s,
            "slo_tpot_ms": self.settings.policy.slo_tpot_ms,
        }
