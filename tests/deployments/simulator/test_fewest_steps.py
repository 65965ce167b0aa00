"""No schedule that keeps to the objective has fewer steps than the bound, whatever its steps hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scaling.capacity import StepCosts
from deployments.simulator.fewest_steps import Totals, fewest_steps
from deployments.simulator.setup import SimulatorSettings

SETTINGS = SimulatorSettings()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_random_schedules_within_the_objective_have_more_steps(seed, count):
    rng = np.random.default_rng(seed)
    costs, tpot_s = SETTINGS.costs, SETTINGS.policy.slo_tpot_ms / 1e3
    rows = np.floor(rng.integers(0, SETTINGS.max_num_seqs + 1, count) * rng.choice([0.0, 0.3, 1.0], count))
    prompt = (SETTINGS.max_num_batched_tokens - rows) * rng.choice([0.0, 0.7, 1.0], count)
    context = np.minimum(rows * rng.uniform(1, 3000, count), SETTINGS.kv_tokens)
    lasts = costs.step + costs.prefill_token * prompt + costs.decode_row * rows + costs.context_token * context
    if (rows * (lasts - tpot_s)).sum() > 0:
        prompt = np.zeros(count)  # rows alone are short enough
    found = fewest_steps(Totals(prompt.sum(), rows.sum(), context.sum()), SETTINGS)
    assert found <= count * (1 + 1e-9)


def test_the_bound_is_near_what_equal_steps_take():
    costs = SETTINGS.costs
    rows, context = 120.0, 120.0 * 1200
    prompt = (0.1 - costs.step - rows * costs.decode_row - costs.context_token * context) / costs.prefill_token
    assert prompt + rows <= SETTINGS.max_num_batched_tokens
    assert 85 < fewest_steps(Totals(100 * prompt, 100 * rows, 100 * context), SETTINGS) <= 100.0001


@pytest.mark.parametrize("costs", [StepCosts(), StepCosts(prefill_token=1e-6), StepCosts(0.2, 1e-3, 1e-3, 1e-5)])
def test_slots_budget_and_memory_bound_it_too(costs):
    changed = SimulatorSettings(costs=costs)
    assert fewest_steps(Totals(10 * changed.max_num_batched_tokens, 0, 0), changed) == pytest.approx(10)
    assert fewest_steps(Totals(0, 1280, 0), changed) >= 10
    assert fewest_steps(Totals(0, 1, 10 * changed.kv_tokens), changed) >= 10


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(0, 1e7)] * 3),
    st.lists(st.floats(1, 10_000), min_size=2, max_size=5),
)
def test_a_looser_objective_never_needs_more_steps(totals, objectives_ms):
    found = [
        fewest_steps(Totals(*totals), replace(SETTINGS, policy=replace(SETTINGS.policy, slo_tpot_ms=tpot_ms)))
        for tpot_ms in sorted(objectives_ms)
    ]
    assert all(looser <= tighter * (1 + 1e-9) for tighter, looser in itertools.pairwise(found))
