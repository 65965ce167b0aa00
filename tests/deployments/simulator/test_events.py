"""Deaths, notices, lost nodes and restarts of the controller: every request is answered, and the fleet comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.errors import BiremeError
from deployments.cli import app
from deployments.simulator.arrivals import Arrivals
from deployments.simulator.compare import Schedule
from deployments.simulator.events import Event, event_of_pairs, read_events, read_start_times
from deployments.simulator.rates.rates_fleet import simulate_rates
from deployments.simulator.requests.answers import Answers, Task
from deployments.simulator.requests.exact_engine import ExactEngine
from deployments.simulator.requests.fleet import Fleet
from deployments.simulator.requests.fluid_engine import FluidEngine
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.result import Result
from deployments.simulator.scaler import PolicyScaler, View
from deployments.simulator.setup import SimulatorSettings

# Engines share the load evenly, so that runs differ by their events alone.
SETTINGS = SimulatorSettings(start_times_s=(10.0,), routing_policy="least_tokens")
ENGINES = (FluidEngine, ExactEngine)


def load(seconds: float = 120.0, rate: float = 3.0) -> Arrivals:
    rng = np.random.default_rng(0)
    at = np.sort(rng.uniform(0, seconds, int(rate * seconds)))
    return Arrivals(
        at, rng.integers(50, 1500, len(at)).astype(float), rng.integers(20, 200, len(at)).astype(float), None, seconds
    )


def run(make, *events: Event, engines: int = 3, settings: SimulatorSettings = SETTINGS) -> Result:
    return simulate_requests(load(), settings, Schedule([engines], 1.0), engines, events=events, make=make)


def size_at(found: Result, second: float) -> int:
    return [size for at, size in found.engines if at <= second][-1]


@pytest.mark.parametrize("make", ENGINES)
def test_engines_that_die_are_replaced_and_their_answers_go_on_elsewhere(make):
    calm, found = run(make), run(make, Event(30.0, "death", engines=2))
    assert (calm.num_lost, found.num_lost, found.num_starts) == (0, 2, 2)
    assert np.isfinite(found.ttft_s["p99"]) and np.isfinite(found.tpot_ms["p99"])
    assert found.tpot_ms["p99"] > calm.tpot_ms["p99"]
    assert size_at(found, 29.0) == 3 and size_at(found, 40.0) == 3


@pytest.mark.parametrize("make", ENGINES)
def test_one_that_died_is_replaced_as_late_as_was_measured_and_a_start_counts_from_the_decision(make):
    settings = replace(SETTINGS, start_times_s=(4.0,), replace_times_s=(25.0,))
    found = run(make, Event(30.0, "death", engines=1), settings=settings)
    soon = run(make, Event(30.0, "death", engines=1), settings=replace(settings, replace_times_s=()))
    assert found.num_starts == soon.num_starts == 1
    paid_s = (found.engine_hours - soon.engine_hours) * 3600
    assert paid_s == pytest.approx(0.0, abs=3.0), "an engine that starts is paid for"
    assert found.ttft_s["p95"] > soon.ttft_s["p95"]
    growing = simulate_requests(load(), settings, Schedule([1, 2], 60.0), 1, make=make)
    decided_at = next(at for at, size in growing.engines if size == 2) - 0.5
    fleet = Fleet(settings, Answers(load(), settings), make, 0)
    fleet.resize(1, decided_at + 0.5, decided_at)
    assert fleet.starting == [decided_at + 4.0]


def test_a_service_that_has_just_begun_knows_no_rate():
    views: list[View] = []

    class Looking(Schedule):
        def target(self, view: View) -> int:
            views.append(view)
            return super().target(view)

    for ran_before in (True, False):
        simulate_requests(load(20.0), SETTINGS, Looking([3], 1.0), 3, ran_before=ran_before)
    first = [view for view in views if view.now == 0.5]
    assert first[0].arrivals_per_s == pytest.approx(3.0, rel=0.3) and first[1].arrivals_per_s < 1.0
    last = [view.arrivals_per_s for view in views if view.now == 20.0]
    assert last[0] == pytest.approx(last[1], rel=0.05)


@pytest.mark.parametrize("make", ENGINES)
def test_all_engines_die_at_once_and_nobody_is_lost(make):
    found = run(make, Event(30.0, "node_lost"))
    assert found.num_lost == 3 and found.requests == len(load().at)
    assert 7.0 < found.ttft_s["p99"] < 12.0  # who came just after it waits for a start
    assert np.isfinite(found.tpot_ms["p99"])


@pytest.mark.parametrize("make", ENGINES)
def test_a_notice_gives_time_to_finish(make):
    late = run(make, Event(30.0, "notice", engines=1, deadline_s=60.0))
    soon = run(make, Event(30.0, "notice", engines=1, deadline_s=1.0))
    death = run(make, Event(30.0, "death", engines=1))
    assert (late.num_lost, soon.num_lost, death.num_lost) == (0, 1, 1)
    assert late.tpot_ms["p99"] <= soon.tpot_ms["p99"] <= death.tpot_ms["p99"]
    assert late.num_starts == 1


def test_a_node_takes_its_engines_along():
    found = run(FluidEngine, Event(30.0, "node_lost"), engines=6, settings=replace(SETTINGS, engines_per_node=2))
    assert found.num_lost == 2


class Recording(PolicyScaler):
    def __init__(self, settings: SimulatorSettings) -> None:
        super().__init__(settings)
        self.seen: list[tuple[View, int, float]] = []

    def target(self, view: View) -> int:
        known = self.state.at
        target = super().target(view)
        self.seen.append((view, target, known))
        return target


@pytest.mark.parametrize("state", ["kept", "lost"])
@pytest.mark.parametrize("make", ENGINES)
def test_a_controller_that_restarts_holds_the_fleet(make, state):
    scaler = Recording(SETTINGS)
    event = Event(60.0, "controller_restart", down_s=7.0, state=state)
    simulate_requests(load(), SETTINGS, scaler, 3, events=(event,), make=make)
    pauses = [(a[0].now, b[0].now) for a, b in pairwise(scaler.seen) if b[0].now - a[0].now > 2]
    assert len(pauses) == 1 and pauses[0][1] - pauses[0][0] >= 7.0
    index = next(i for i, (view, _, _) in enumerate(scaler.seen) if view.is_blind)
    blind, held, known = scaler.seen[index]
    before = scaler.seen[index - 1][1]
    assert held == (before if state == "kept" else blind.num_ready)
    assert (known > 0) == (state == "kept")


def test_rates_have_events_too():
    flow = Arrivals(np.zeros(1), np.array([800.0]), np.array([150.0]), np.array([20.0]), 600.0)
    calm = simulate_rates(flow, SETTINGS, PolicyScaler(SETTINGS), 6)
    events = Event(100.0, "death", engines=3), Event(300.0, "controller_restart", down_s=30.0, state="lost")
    found = simulate_rates(flow, SETTINGS, PolicyScaler(SETTINGS), 6, events=events)
    assert (calm.num_lost, found.num_lost) == (0, 3)
    assert found.num_starts >= 3 and found.attainment < calm.attainment


def test_a_file_of_events_and_flags_are_the_same(tmp_path):
    file = tmp_path / "events"
    file.write_text(
        '{"at": 60, "event": "death", "engines": 2}\n\n{"at": 30, "event": "controller_restart", "state": "lost"}\n'
    )
    assert read_events(file) == (event_of_pairs("at=30 event=controller_restart state=lost"), Event(60.0, "death", 2))


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"event": "death"}', "at: is missing"),
        ('{"at": -1, "event": "death"}', "at: got -1"),
        ('{"at": 1, "event": "flood"}', "event: got 'flood'"),
        ('{"at": 1, "event": "death", "engines": 0}', "engines: got 0"),
        ('{"at": 1, "event": "death", "engines": 1.5}', "engines: got 1.5"),
        ('{"at": 1, "event": "death", "deadline_s": 5}', "deadline_s: death has no such field"),
        ('{"at": 1, "event": "notice", "deadline_s": NaN}', "deadline_s: got nan"),
        ('{"at": 1, "event": "controller_restart", "state": "half"}', "state: got 'half'"),
        ("at=1", "line 1: want an object"),
        ("[]", "line 1: want an object"),
    ],
)
def test_a_wrong_event_names_its_line_and_field(tmp_path, line, field):
    (tmp_path / "events").write_text(line + "\n")
    with pytest.raises(BiremeError) as raised:
        read_events(tmp_path / "events")
    assert "line 1" in str(raised.value) and field in str(raised.value)


def test_start_times_are_those_that_were_measured(tmp_path):
    (tmp_path / "lines").write_text("4.5\n6\n")
    (tmp_path / "list").write_text("[4.5, 6]")
    assert read_start_times(tmp_path / "lines") == read_start_times(tmp_path / "list") == (4.5, 6.0)
    (tmp_path / "none").write_text("4.5\nsoon\n")
    with pytest.raises(BiremeError):
        read_start_times(tmp_path / "none")


def test_the_command_takes_events_start_times_and_fidelity(tmp_path):
    rows = "".join(f"2024-01-01 00:{i // 60:02d}:{i % 60:02d}.0000000,400,40\n" for i in range(180))
    (tmp_path / "trace").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    (tmp_path / "starts").write_text("3\n")
    (tmp_path / "events").write_text('{"at": 60, "event": "death"}\n')
    command = ["simulate", str(tmp_path / "trace"), "--engines-mean", "0", "--json", "--fidelity", "exact"]
    command += [
        "--begin",
        "20",
        "--seconds",
        "100",
        "--start-times",
        str(tmp_path / "starts"),
        "--events",
        str(tmp_path / "events"),
    ]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert (found["fidelity"], found["requests"], found["num_lost"]) == ("exact", 100, 1)
    wrong = CliRunner().invoke(app, [*command[:-6], "--fidelity", "perfect"])
    assert wrong.exit_code == 1 and "allowed: fluid, exact" in wrong.output


@pytest.mark.parametrize("make", ENGINES)
def test_an_engine_that_is_not_needed_hands_over_what_it_does_not_finish_in_time(make):
    fewer, busy = Schedule([3] * 30 + [2] * 400, 1.0), load(60.0, 12.0)
    at_once, finishing = (
        simulate_requests(busy, replace(SETTINGS, drain_timeout_s=patience_s), fewer, 3, make=make)
        for patience_s in (0.0, 1000.0)
    )
    assert at_once.engine_hours < finishing.engine_hours
    assert at_once.tpot_ms["p50"] > finishing.tpot_ms["p50"]
    assert at_once.requests == finishing.requests == len(busy.at) and at_once.num_lost == 0


@pytest.mark.parametrize("make", ENGINES)
def test_nothing_begins_while_the_controller_is_away(make):
    """Decided or died before it went: starts and replacements are counted from its return."""
    settings = replace(SETTINGS, start_times_s=(12.0,), replace_times_s=(5.0,))
    fleet = Fleet(settings, Answers(load(), settings), make, 2)
    fleet.resize(4, 40.0, 10.0, 40.0)
    assert fleet.starting == [52.0, 52.0]
    fleet = Fleet(settings, Answers(load(), settings), make, 2)
    fleet.happens(Event(20.0, "death", engines=1), 20.0)
    fleet.resize(2, 59.0, 59.0, 59.0)
    assert fleet.starting == [64.0]


def test_who_is_not_needed_leaves_in_serves_order_whatever_it_has_to_do():
    """First of the nodes with the fewest engines, there the newest first (Ray's ``_get_replicas_to_stop``)."""
    settings = replace(SETTINGS, engines_per_node=3)
    fleet = Fleet(settings, Answers(load(), settings), FluidEngine, 7)
    fleet.advance(0.0, 0.5, [(0.1, Task(number)) for number in range(30)])
    assert all(engine.num_requests for engine in fleet.ready)
    left = []
    for wanted in (5, 3, 2, 1):
        fleet.resize(wanted, 1.0, 1.0)
        left.append([engine.name for engine in fleet.leaving[sum(map(len, left)) :]])
    assert left == [[6, 5], [4, 3], [2], [1]]
