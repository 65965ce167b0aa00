"""Rates that flow: the same figures as of single requests, and machines that are paid for until they have finished."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from deployments.simulator.arrivals import Arrivals, single_requests
from deployments.simulator.compare import Schedule
from deployments.simulator.rates import steady_load
from deployments.simulator.rates.machines import Machines
from deployments.simulator.rates.rates_fleet import settled, simulate_rates
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.setup import SimulatorSettings

SETTINGS = SimulatorSettings(prompt_tokens=500.0, output_tokens=60.0)


def flow(rate: float, seconds: float) -> Arrivals:
    """Of the lengths that single requests are drawn from."""
    factors = np.exp(0.8 * np.linspace(-2, 2, 16))
    factors /= factors.mean()
    return Arrivals(
        np.zeros(1),
        SETTINGS.prompt_tokens * factors,
        SETTINGS.output_tokens * factors[::-1],
        np.array([rate]),
        seconds,
    )


@pytest.mark.parametrize("engines", [4, 7])
def test_rates_wait_as_long_as_single_requests(engines):
    load, scaler = flow(30.0, 400.0), Schedule([engines], 1.0)
    rates = simulate_rates(load, SETTINGS, scaler, engines)
    drawn = [replace(SETTINGS, seed=seed) for seed in range(3)]
    single = [simulate_requests(single_requests(load, one), one, scaler, engines) for one in drawn]
    for name in ("p50", "p95"):
        assert rates.ttft_s[name] == pytest.approx(fmean(one.ttft_s[name] for one in single), rel=0.05)
    assert rates.engine_hours == pytest.approx(fmean(one.engine_hours for one in single), rel=0.05)
    assert rates.attainment == pytest.approx(fmean(one.attainment for one in single), abs=0.01)


def test_who_has_come_takes_over_as_answers_end_and_who_leaves_is_missed_at_once():
    after = [settled(4.0, 6.0, answers) for answers in (0.0, 0.5, 1.0, 5.0)]
    assert after == sorted(after) and after[0] == 4.0
    assert after[2] == pytest.approx(6 - 2 * np.exp(-1)) and after[3] == pytest.approx(6, abs=0.02)
    assert settled(6.0, 4.0, 0.0) == 4.0


def test_waits_stay_those_of_the_smaller_fleet_for_the_time_of_an_answer(monkeypatch):
    monkeypatch.setattr(steady_load, "_REQUESTS", 2000)
    settings = replace(SETTINGS, output_tokens=400.0, start_times_s=(0.5,))
    load = Arrivals(np.zeros(1), np.full(4, 500.0), np.full(4, 400.0), np.array([10.0]), 12.0)
    grown, large = (simulate_rates(load, settings, Schedule([4], 1.0), initial) for initial in (2, 4))
    assert grown.ttft_s["p50"] > 1.1 * large.ttft_s["p50"]


def test_an_engine_that_leaves_is_paid_for_until_it_has_finished():
    machines = Machines(5, SETTINGS, np.random.default_rng(0))
    machines.resize(3, 0.0, drain_s=25.0)
    for window in range(4):
        assert machines.serving(10.0 * window, 10.0) == 3
    assert machines.paid_s == 3 * 40.0 + 2 * 25.0
    machines.resize(4, 40.0, drain_s=25.0)
    machines.resize(3, 40.0, drain_s=25.0)  # one that has not begun has nothing to finish
    machines.serving(40.0, 10.0)
    assert machines.paid_s == 3 * 50.0 + 2 * 25.0
