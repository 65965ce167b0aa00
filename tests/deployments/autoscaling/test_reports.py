"""What an ingress tells the policy arrives as it was, and is as old as it is."""

from __future__ import annotations

import json

import pytest

from cluster.outputs import EngineLoad
from cluster.scaling.inputs import EngineSample, IngressLoad, ScalingInputs, TargetCount
from deployments.autoscaling.reports import FORGOTTEN_S, HeardReports, decoded, encoded

TARGETS = [None, TargetCount(3, 1, 0.75), TargetCount(0, 0, None)]
LOAD = EngineLoad(3, 4, num_tokens=77, oldest_wait_s=0.1 + 0.2, queue_time_counts=(1, 2, 3), queue_time_s=1e-9)


@pytest.mark.parametrize("ttft", TARGETS)
@pytest.mark.parametrize(
    "engines", [(), (EngineSample("é::1", LOAD, 1 / 3), EngineSample("b", EngineLoad(-1, 0), 0.0))]
)
def test_a_report_arrives_as_it_was(ttft, engines):
    inputs = ScalingInputs(IngressLoad(1e9 + 1 / 3, 7, 0.1, 1e-300, 2, 1, ttft, TARGETS[1]), engines)
    assert decoded(encoded(inputs)) == inputs


@pytest.mark.parametrize("text", [b"", b"{}", b"[1, 2]", b"[[1], []]", b"null", b"\xff"])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ValueError):
        decoded(text)


def test_a_report_of_another_version_is_refused():
    inputs = report(0.0, 0, [EngineSample("e", EngineLoad(1, 1), 0.1)])
    ingress, engines = json.loads(encoded(inputs))
    engines[0][1].append(5)
    with pytest.raises(ValueError, match="fields"):
        decoded(json.dumps([ingress, engines]).encode())


def report(sampled_at: float, num_arrived: int = 0, engines=()) -> ScalingInputs:
    return ScalingInputs(IngressLoad(sampled_at, num_arrived, 0.0, 0.0, 0, 0, None, None), tuple(engines))


class Clocks:
    """Two clocks, one of which says the time of another machine."""

    def __init__(self) -> None:
        self.mono, self.wall = 100.0, 1000.0
        self.reports = HeardReports(lambda: self.mono, lambda: self.wall)

    def age_s(self, name: str) -> float:
        return self.mono - self.reports.reports()[name][1]

    def passes(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds


def test_a_first_report_is_as_old_as_the_clocks_differ_and_later_ones_as_they_were_heard():
    clocks = Clocks()
    clocks.reports.hear({"a": encoded(report(990.0))})
    assert clocks.age_s("a") == 10, "a reader that has just begun takes nothing old for new"
    clocks.passes(0.2)
    clocks.reports.hear({"a": encoded(report(990.2))})
    assert clocks.age_s("a") == pytest.approx(0.2), "no older than the last look, whatever that machine's clock says"
    clocks.passes(0.2)
    clocks.reports.hear({"a": encoded(report(1000.3))})
    assert clocks.age_s("a") == pytest.approx(0.1), "as old as the clocks say, where they may be right"
    clocks.passes(0.3)
    clocks.reports.hear({"a": encoded(report(1000.3))})
    assert clocks.age_s("a") == pytest.approx(0.4)
    clocks.reports.hear({"b": encoded(report(1010.5))})
    assert list(clocks.reports.reports()) == ["b"]
    assert clocks.age_s("b") == pytest.approx(9.8)


def test_an_ingress_whose_clock_is_wrong_by_hours_is_heard_when_it_speaks_again():
    clocks = Clocks()
    assert clocks.reports.hear({"a": encoded(report(9000.0))}) == []
    clocks.passes(0.2)
    assert clocks.reports.hear({"a": encoded(report(9000.2))}) == []
    assert clocks.age_s("a") == 0


def test_a_report_that_nobody_renews_is_forgotten_and_one_that_cannot_be_read_counts_for_none():
    clocks = Clocks()
    entries = {"a": encoded(report(1000.0)), "b": b"{"}
    assert clocks.reports.hear(entries) == []
    assert list(clocks.reports.reports()) == ["a"]
    clocks.passes(FORGOTTEN_S + 1)
    assert clocks.reports.hear(entries) == ["a"]
    assert not clocks.reports.reports()
