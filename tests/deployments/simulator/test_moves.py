"""Who waits in a simulated fleet moves as those who wait for real engines do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deployments.simulator.arrivals import Arrivals
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.requests.exact_engine import ExactEngine
from deployments.simulator.requests.fleet import Fleet
from deployments.simulator.requests.fluid_engine import FluidEngine
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.scaler import View
from deployments.simulator.setup import SimulatorSettings

SETTINGS = SimulatorSettings(max_num_seqs=4, max_num_batched_tokens=256, kv_tokens=20_000, max_model_len=4096)
both_fidelities = pytest.mark.parametrize("make", [FluidEngine, ExactEngine])


def waiting(engine) -> list[int]:
    """Requests in the order in which they would begin."""
    if isinstance(engine, FluidEngine):
        return [prompt.task.request for prompt in engine._waiting]
    return [int(sequence.request.request_id) for sequence in engine._scheduler.waiting]


def two_full_engines(make, in_lines: tuple[list[int], list[int]]) -> Fleet:
    """Eight requests run for long; the others came later, one every half second by their number, and wait."""
    count = 8 + sum(map(len, in_lines))
    at = np.maximum(0.0, (np.arange(count) - 7) / 2)
    load = Arrivals(at, np.full(count, 10.0), np.full(count, 2000.0), None, float(at[-1]))
    fleet = Fleet(SETTINGS, Answers(load, SETTINGS), make, 2)
    for engine, running, line in zip(fleet.ready, (range(4), range(4, 8)), in_lines):
        for request in running:
            fleet._submit(engine, (0.0, Task(request)))
        engine.advance(0.1)
        for request in line:
            fleet._submit(engine, (at[request], Task(request)))
    for engine in fleet.ready:
        engine.advance(float(at[-1]) + 0.1)
    return fleet


@both_fidelities
def test_two_lines_become_one_in_the_order_in_which_requests_came(make):
    fleet = two_full_engines(make, ([8, 11, 12], [9, 10, 13]))
    old, young = fleet.ready
    assert (waiting(old), waiting(young)) == ([8, 11, 12], [9, 10, 13])
    fleet._balance(5.0)
    for engine in fleet.ready:
        engine.advance(5.5)
    assert (waiting(old), waiting(young)) == ([8, 9, 10, 11, 12, 13], [])
    assert old.num_requests == 10 and young.num_requests == 4
    # Who stands in a line may go on to a place.
    assert old.balance_view(5.5).num_movable == 6 and old.take_waiting(2) == [Task(8, 0, True), Task(9, 0, True)]


@both_fidelities
def test_a_line_that_has_no_room_takes_nobody_and_equal_lines_stay(make):
    fleet = two_full_engines(make, ([8, 11], [9, 10]))
    fleet._settings = replace(SETTINGS, max_queued_requests=7)
    for engine in fleet.ready:
        engine._settings = fleet._settings
    fleet._balance(5.0)
    assert (waiting(fleet.ready[0]), waiting(fleet.ready[1])) == ([8, 11], [9, 10])
    # As seen by now, the first ones came together.
    same = two_full_engines(make, ([8, 10], [9, 11]))
    same._answers._arrived[8:10] = [0.5, 0.6]
    same._balance(5.0)
    assert (waiting(same.ready[0]), waiting(same.ready[1])) == ([8, 10], [9, 11])


@both_fidelities
def test_where_all_engines_are_full_hardly_anybody_begins_before_who_came_earlier(make):
    rng = np.random.default_rng(0)
    at = np.sort(rng.uniform(0.0, 60.0, 400))
    load = Arrivals(at, np.full(400, 200.0), np.maximum(2.0, rng.exponential(120.0, 400).round()), None, 60.0)
    settings = replace(SETTINGS, policy=replace(SETTINGS.policy, max_replicas=3))
    result = simulate_requests(load, settings, Fixed(3), 3, make=make)
    assert result.ttft_s["p50"] > 3.0, "they wait"
    answers = Answers(load, settings)
    fleet = Fleet(settings, answers, make, 3)
    now, first = 0.0, 0
    while answers.num_ended < len(at):
        last = int(np.searchsorted(at, now + 0.5))
        fleet.advance(now, now + 0.5, [(float(at[i]), Task(i)) for i in range(first, last)])
        first, now = last, now + 0.5
    begun = np.argsort(answers.ttft_s + at, kind="stable")
    youngest = np.maximum.accumulate(at[begun])
    passed_by_s = youngest - at[begun]
    assert np.quantile(passed_by_s, 0.95) < 1.5


class Fixed:
    """So many engines."""

    def __init__(self, count: int) -> None:
        self._count = count

    def target(self, view: View) -> int:
        return self._count

    def restart(self, keeps_state: bool) -> None:
        """It remembers nothing."""
