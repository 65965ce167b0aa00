"""What engines do under a load that stays as it is: measured on a small fleet of single requests, once for each level of it.

A mean knows nothing of what makes a wait long: two long prompts in one engine at once, an engine that happens to have more
rows than others, a choice of two that were both full. Nor of how long the last answer of an engine that leaves takes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cluster.scaling.capacity import request_work_s
from deployments.simulator.arrivals import Array, Arrivals, single_requests
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.requests.fleet import Fleet
from deployments.simulator.requests.fluid_engine import FluidEngine
from deployments.simulator.setup import SimulatorSettings

_TICK_S = 0.5
# Shares of what an engine serves at most; at the last one a queue still ends.
_LEVELS = np.array([0.05, *np.arange(0.2, 0.96, 0.05).round(2).tolist()])
_REQUESTS = 24_000
_MOST_ENGINES = 12
# Cells of the distribution of waits, finer where few miss an objective.
_EDGES = np.array([*np.arange(0, 45) / 50, *np.arange(180, 200) / 200, 0.998, 0.999, 1.0])
_MIDDLES = (_EDGES[1:] + _EDGES[:-1]) / 2
SHARES = np.diff(_EDGES)
"""Of requests, by cell."""


class Steady(NamedTuple):
    """At one level.

    Attributes:
        ttft_s: in the middle of each cell.
        drain_s: until an engine that takes nothing more has finished what it has, or hands it over.
        handed_over: share of what it had that it does not finish.
    """

    ttft_s: Array
    drain_s: float
    handed_over: float


class SteadyLoad:
    """For requests whose lengths are those of the settings.

    Args:
        load: classes of these lengths.
        engines: of the fleet that it is about; at most twelve are run.
    """

    def __init__(self, load: Arrivals, settings: SimulatorSettings, engines: int) -> None:
        self._settings = settings
        self._engines = min(max(engines, 1), _MOST_ENGINES)
        shape, rows = load.shape, settings.rows_limit(load.shape)
        # Every step has as many rows and tokens of prompts as come together in the long run.
        self._most_per_s = 1 / (
            request_work_s(settings.costs, shape) + shape.output_tokens * settings.costs.step / rows
        )
        # Until as many answers end as begin.
        self._warm_s = 2.5 * shape.output_tokens * settings.policy.slo_tpot_ms / 1e3
        self._found: dict[int, Steady] = {}

    def at(self, per_s: float) -> Steady:
        """When so many requests come to an engine every second, and none was left behind; beyond the last level as there."""
        level = min(max(per_s / self._most_per_s, _LEVELS[0]), _LEVELS[-1])
        after = max(1, int(np.searchsorted(_LEVELS, level)))
        part = (level - _LEVELS[after - 1]) / (_LEVELS[after] - _LEVELS[after - 1])
        low, high = self._measured(after - 1), self._measured(after)
        return Steady(
            (1 - part) * low.ttft_s + part * high.ttft_s,
            float((1 - part) * low.drain_s + part * high.drain_s),
            float((1 - part) * low.handed_over + part * high.handed_over),
        )

    def _measured(self, level: int) -> Steady:
        if level not in self._found:
            self._found[level] = self._run(float(_LEVELS[level]) * self._most_per_s * self._engines)
        return self._found[level]

    def _run(self, rate: float) -> Steady:
        settings, seconds = self._settings, self._warm_s + _REQUESTS / rate
        load = single_requests(Arrivals(np.zeros(1), np.ones(1), np.ones(1), np.array([rate]), seconds), settings)
        answers = Answers(load, settings)
        fleet = Fleet(settings, answers, FluidEngine, self._engines)
        at, first, now = load.at.tolist(), 0, 0.0
        ended: dict[int, float] = {}
        drain_until = np.ceil((seconds + settings.drain_timeout_s) / _TICK_S) * _TICK_S
        at_the_end = handed_over = 0
        while first < len(at) or any(engine.num_requests for engine in fleet.ready):
            last = first
            while last < len(at) and at[last] < now + _TICK_S:
                last += 1
            fleet.advance(now, now + _TICK_S, [(at[i], Task(i)) for i in range(first, last)])
            first, now = last, now + _TICK_S
            ended.update({engine.name: now for engine in fleet.ready if engine.num_requests})
            here = sum(engine.num_requests for engine in fleet.ready)
            at_the_end = here if now <= seconds else at_the_end
            handed_over = here if now == drain_until else handed_over
        found = answers.ttft_s[load.at >= self._warm_s]
        drains = [max(0.0, ended.get(engine.name, 0.0) - seconds) for engine in fleet.ready]
        return Steady(
            np.quantile(found, _MIDDLES) if len(found) else np.zeros(len(SHARES)),
            float(np.minimum(drains, settings.drain_timeout_s).mean()),
            min(1.0, handed_over / max(at_the_end, 1)),
        )
