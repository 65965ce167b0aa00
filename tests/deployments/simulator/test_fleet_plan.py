"""A plan contradicts itself nowhere: no fleet is below the oracle, no mean above its most, all over one span."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.simulator.compare import Schedule
from deployments.simulator.fleet_plan import FIXED, ORACLE, POLICY, planned
from deployments.simulator.setup import SimulatorSettings
from deployments.simulator.study import Study


def study_of(folder, requests: list[tuple[float, int, int]], **objectives: float) -> Study:
    """Of requests as (second, tokens of the prompt, tokens of the answer)."""
    rows = [f"2024-01-01 00:{int(at) // 60:02d}:{at % 60:09.6f},{p},{o}" for at, p, o in requests]
    (folder / "trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    default = SimulatorSettings()
    return Study(folder / "trace.csv", replace(default, policy=replace(default.policy, **objectives)), None)


def crowd(seed: int, count: int, seconds: float) -> list[tuple[float, int, int]]:
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, seconds, count)).round(3)
    prompts, outputs = rng.integers(1, 4000, count), rng.integers(1, 400, count)
    return list(zip(at.tolist(), prompts.tolist(), outputs.tolist()))


crowds = st.builds(crowd, st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([0.0, 4.0, 60.0]))


@settings(max_examples=25, deadline=None)
@given(crowds, st.sampled_from([0.5, 2.0, 60.0]), st.sampled_from([40.0, 100.0, 1000.0]), st.sampled_from([0.9, 0.99]))
def test_no_fleet_within_the_objectives_is_below_the_oracle(tmp_path_factory, requests, ttft_s, tpot_ms, share):
    study = study_of(tmp_path_factory.mktemp("plan"), requests, slo_ttft_s=ttft_s, slo_tpot_ms=tpot_ms, slo_share=share)
    plan = planned(study)
    fleets = {POLICY: plan.policy} | ({FIXED: plan.fixed} if plan.fixed else {})
    for name, fleet in fleets.items():
        assert plan.mean_engines[name] <= fleet.peak_engines + 1e-9
        assert plan.span_s >= fleet.span_s >= study.load.duration_s
        if fleet.attainment >= share:
            assert plan.engine_hours[name] >= plan.engine_hours[ORACLE] - 1e-9
    if plan.fixed:
        assert plan.mean_engines[FIXED] == pytest.approx(plan.fixed.peak_engines)
        if plan.fixed.peak_engines > 1:
            fewer = plan.fixed.peak_engines - 1
            assert study.run(Schedule([fewer], 1.0), initial=fewer).attainment < share


@settings(max_examples=25, deadline=None)
@given(
    crowds,
    st.tuples(st.floats(0.1, 100), st.floats(5, 3000), st.floats(0.5, 0.999)),
    st.tuples(st.floats(1, 100), st.floats(1, 100), st.floats(0.5, 1)),
)
def test_the_oracle_never_rises_as_the_objectives_loosen(tmp_path_factory, requests, objectives, looser):
    folder = tmp_path_factory.mktemp("oracle")
    (ttft_s, tpot_ms, share), (ttft_times, tpot_times, share_times) = objectives, looser
    tight = study_of(folder, requests, slo_ttft_s=ttft_s, slo_tpot_ms=tpot_ms, slo_share=share)
    loose = study_of(
        folder,
        requests,
        slo_ttft_s=ttft_s * ttft_times,
        slo_tpot_ms=tpot_ms * tpot_times,
        slo_share=share * share_times,
    )
    assert loose.bound.proved_hours <= tight.bound.proved_hours * (1 + 1e-9)


def test_a_fleet_that_has_answered_is_paid_for_until_the_slowest_has(tmp_path):
    """One engine takes minutes for a crowd that a larger fleet answers at once; 12 engines were 28.57 on average."""
    plan = planned(study_of(tmp_path, [(i / 100, 500, 200) for i in range(400)], slo_ttft_s=60.0, slo_tpot_ms=200.0))
    assert (plan.fixed.peak_engines, plan.policy.attainment) == (1, 1.0)
    assert plan.policy.span_s == pytest.approx(plan.span_s, abs=0.5)
    assert plan.mean_engines[ORACLE] <= plan.mean_engines[FIXED] == 1 <= plan.mean_engines[POLICY]


def test_a_fixed_fleet_has_as_many_engines_as_there_must_be(tmp_path):
    plan = planned(study_of(tmp_path, crowd(1, 20, 60.0), min_replicas=3))
    assert plan.fixed.peak_engines == 3 and plan.engine_hours[ORACLE] <= plan.engine_hours[FIXED]
