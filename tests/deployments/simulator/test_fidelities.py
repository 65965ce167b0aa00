"""Both fidelities of the simulator: the same figures from the real scheduler and from sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deployments.simulator.arrivals import Arrivals
from deployments.simulator.compare import Schedule
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.requests.exact_engine import ExactEngine
from deployments.simulator.requests.fluid_engine import FluidEngine
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.result import Result
from deployments.simulator.scaler import PolicyScaler
from deployments.simulator.setup import SimulatorSettings

SETTINGS = SimulatorSettings(max_num_seqs=32, kv_tokens=20_000, max_model_len=4096)
ENGINES = (FluidEngine, ExactEngine)


def random_load(rate: float, seconds: float, seed: int = 0) -> Arrivals:
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, seconds, int(rate * seconds)))
    prompt = np.round(np.minimum(rng.lognormal(6.0, 1.0, len(at)), 3000))
    output = np.maximum(1.0, np.round(np.minimum(rng.lognormal(4.0, 0.8, len(at)), 600)))
    return Arrivals(at, prompt.astype(float), output.astype(float), None, seconds)


def both(load: Arrivals, settings: SimulatorSettings, engines: int | None) -> list[Result]:
    """With a policy that begins with three engines, or a fixed number of them."""
    found = []
    for make in ENGINES:
        scaler = PolicyScaler(settings) if engines is None else Schedule([engines], 1.0)
        found.append(simulate_requests(load, settings, scaler, engines or 3, make=make))
    return found


@pytest.mark.parametrize(("rate", "engines"), [(4.0, 2), (12.0, 2), (9.0, None)], ids=["light", "overloaded", "policy"])
def test_both_fidelities_agree_within_five_percent(rate, engines):
    fluid, exact = both(random_load(rate, 90.0), SETTINGS, engines)
    for name in ("p50", "p95"):
        assert fluid.ttft_s[name] == pytest.approx(exact.ttft_s[name], rel=0.05)
        assert fluid.tpot_ms[name] == pytest.approx(exact.tpot_ms[name], rel=0.05)
    assert fluid.engine_hours == pytest.approx(exact.engine_hours, rel=0.05)


@pytest.mark.parametrize(("rate", "engines"), [(4.0, 2), (12.0, 2), (9.0, None)], ids=["light", "overloaded", "policy"])
@pytest.mark.parametrize("routing", ["power_of_two", "least_tokens"])
def test_while_memory_is_not_short_both_give_the_same_times(rate, engines, routing):
    settings = replace(SETTINGS, kv_tokens=200_000, max_num_seqs=12, routing_policy=routing)
    fluid, exact = both(random_load(rate, 60.0, seed=1), settings, engines)
    # To the rounding of sums in another order, of which one may move a request in ten thousand to another engine.
    for name in ("p50", "p95", "p99"):
        assert fluid.ttft_s[name] == pytest.approx(exact.ttft_s[name], rel=1e-3)
        assert fluid.tpot_ms[name] == pytest.approx(exact.tpot_ms[name], rel=1e-3)
    assert fluid.engines == exact.engines


@pytest.mark.parametrize("make", ENGINES)
def test_an_engine_alone_takes_what_its_steps_cost(make):
    settings, load = SETTINGS, Arrivals(np.zeros(1), np.array([500.0]), np.array([3.0]), None, 0.0)
    answers, costs = Answers(load, settings), settings.costs
    engine = make(0, 0.0, settings, answers)
    engine.submit(Task(0), 0.0)
    engine.advance(5.0)
    assert engine.num_requests == 0
    first = costs.step + 500 * costs.prefill_token
    assert answers.ttft_s[0] == pytest.approx(first)
    row = costs.step + costs.decode_row
    assert answers.tpot_s[0] == pytest.approx(row + 501.5 * costs.context_token)
    told = engine.told()
    assert (told.num_steps, told.num_prefill_tokens, told.num_generated_tokens) == (3, 500, 3)


def test_both_tell_the_router_the_same_while_prompts_are_computed():
    settings, load = replace(SETTINGS, kv_tokens=200_000), random_load(8.0, 10.0, seed=2)
    told: list[list[tuple[int, int]]] = []
    for make in ENGINES:
        engine = make(0, 0.0, settings, Answers(load, settings))
        for i, at in enumerate(load.at.tolist()):
            engine.submit(Task(i), at)
        found = []
        for tick in range(1, 30):
            engine.advance(tick / 2)
            found.append((engine.num_tokens, engine.uncomputed_tokens))
            assert engine.told().uncomputed_tokens == engine.uncomputed_tokens >= engine.waiting_tokens
        told.append(found)
    assert told[0] == told[1]
    assert any(uncomputed for _, uncomputed in told[0])


@pytest.mark.parametrize("make", ENGINES)
def test_what_an_engine_gives_up_another_one_goes_on_with(make):
    load = random_load(30.0, 1.0)
    answers = Answers(load, SETTINGS)
    engine, other = make(0, 0.0, SETTINGS, answers), make(1, 0.0, SETTINGS, answers)
    for i, at in enumerate(load.at.tolist()):
        engine.submit(Task(i), at)
    engine.advance(2.0)
    tasks = engine.give_up()
    assert len(tasks) == len(load.at) - answers.num_ended > 0
    assert any(task.done for task in tasks) and all(task.done < load.output[task.request] for task in tasks)
    for task in tasks:
        other.submit(task, 2.0)
    other.advance(200.0)
    assert answers.num_ended == len(load.at) and other.num_requests == 0
    assert np.all(answers.tpot_s >= 0)


@pytest.mark.parametrize("make", ENGINES)
def test_memory_and_counters_return_to_where_they_were(make):
    """A cache that holds a few requests: some are preempted, and nobody's tokens are lost."""
    settings = replace(SETTINGS, kv_tokens=4200)
    load = random_load(20.0, 10.0, seed=3)
    answers = Answers(load, settings)
    engine = make(0, 0.0, settings, answers)
    for i, at in enumerate(load.at.tolist()):
        engine.submit(Task(i), at)
    engine.advance(2000.0)
    told = engine.told()
    assert answers.num_ended == told.num_ended == told.num_arrived == len(load.at)
    assert told.num_tokens == told.num_running == told.num_waiting == told.waiting_tokens == told.uncomputed_tokens == 0
    assert told.free_kv_tokens >= settings.kv_tokens - settings.block_size
