"""No schedule that the simulator replays within the objectives costs less than the oracle's bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.simulator.arrivals import Arrivals
from deployments.simulator.compare import Schedule
from deployments.simulator.oracle import lower_bound, useful_share
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.setup import SimulatorSettings

# Seconds for which a schedule keeps a number of engines.
_KEPT_S = 10.0
# A step that is under way when an engine goes is not paid for.
_STEP_S = 0.13


def random_load(rng: np.random.Generator) -> Arrivals:
    """A minute or so, with a rate that jumps."""
    duration_s = float(rng.uniform(20, 80))
    parts = [rng.uniform(0, 1, rng.integers(5, 300)) * duration_s for _ in range(2)]
    parts.append(rng.normal(rng.uniform(0, duration_s), 3.0, rng.integers(1, 400)).clip(0, duration_s))
    at = np.sort(np.concatenate(parts))
    prompt = np.round(np.exp(rng.normal(rng.uniform(3, 7), 0.8, len(at)))).clip(1, 8000)
    output = np.round(np.exp(rng.normal(rng.uniform(1, 5.5), 0.8, len(at)))).clip(1, 2000)
    return Arrivals(at, prompt, output, None, duration_s)


def cheapest_found(load: Arrivals, limits: SimulatorSettings, rng: np.random.Generator, tries: int) -> float:
    """Engine-hours of the cheapest schedule found within the objectives: engines are taken away here and there."""
    bins = math.ceil(load.duration_s / _KEPT_S) + 1
    share, best = limits.policy.slo_share, math.inf
    engines = math.ceil(lower_bound(load, limits).demand.max() * 1.3) + 1
    schedule = [engines] * bins
    for _ in range(tries):
        tried = list(schedule)
        if best < math.inf:
            first = int(rng.integers(bins))
            for i in range(first, min(bins, first + int(rng.integers(1, bins + 1)))):
                tried[i] = max(1, tried[i] - int(rng.integers(1, 3)))
        found = simulate_requests(load, limits, Schedule(tried, _KEPT_S), tried[0])
        if found.attainment < share:
            schedule = schedule if best < math.inf else [2 * n for n in schedule]
        elif found.engine_hours <= best:
            schedule, best = tried, found.engine_hours
    return best


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["power_of_two", "least_tokens"]))
def test_no_schedule_that_is_found_costs_less_than_what_is_proved(seed, routing):
    rng = np.random.default_rng(seed)
    load, limits = random_load(rng), SimulatorSettings(routing_policy=routing)
    found, bound = cheapest_found(load, limits, rng, 12), lower_bound(load, limits)
    unpaid = bound.demand.max() * _STEP_S / 3600
    assert found >= bound.proved_hours - unpaid


def test_the_longest_answers_of_rates_may_miss_as_those_of_single_requests_do():
    """So many in a class that one in a hundred is a part of it."""
    prompt, output = np.full(50, 500.0), np.append(np.full(49, 50.0), 2000.0)
    rates = Arrivals(np.zeros(1), prompt, output, np.array([10.0]), 600.0)
    single = Arrivals(np.linspace(0, 600, 5000), np.tile(prompt, 100), np.tile(output, 100), None, 600.0)
    limits = SimulatorSettings()
    assert useful_share(rates, limits) == pytest.approx(useful_share(single, limits), rel=1e-3)
