"""A short scenario for every run of the tests; ``make chaos`` is the long one."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.faults import Fault, draw_faults
from tests.chaos.scenario import Setup, application, run_scenario

# One of each that matters, in an order that leaves a warm engine for each next one.
SHORT = [
    Fault("kill", "runner", 0.5, 0.0),
    Fault("stop", "runner", 0.5, 0.9, stopped_s=5.0),
    Fault("kill", "ingress", 0.5, 0.5),
    Fault("kill", "engine", 0.5, 0.5),
]


def test_a_seed_draws_the_same_faults_again():
    assert draw_faults(7, 20) == draw_faults(7, 20) != draw_faults(8, 20)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_no_request_is_lost_or_changed_by_dying_and_hanging_processes(tmp_path, capsys):
    setup = Setup(num_engines=3, num_clients=6)
    with application(setup, tmp_path / "tiny") as url:
        report = asyncio.run(run_scenario(url, setup, SHORT, seed=1))
    with capsys.disabled():
        print(f"\n{report}")
    assert sum(report.faults.values()) == len(SHORT)
    assert (report.lost, report.changed, report.leaks) == ([], [], [])
    assert report.ended["resuming"] > 0
