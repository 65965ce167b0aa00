"""Stages of a start: durations add up, and the line for a person says where an engine is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.observability.start_stages import STAGES, StartStages, durations, start_fields, start_line

ENDS = st.dictionaries(st.sampled_from(STAGES), st.floats(0, 100))


@given(ends=ENDS)
def test_durations_add_up_to_the_last_end(ends: dict[str, float]):
    seconds = durations(0.0, ends)
    assert list(seconds) == [stage for stage in STAGES if stage in ends]
    assert min(seconds.values(), default=0.0) >= 0
    assert sum(seconds.values()) == pytest.approx(max(ends.values(), default=0.0))


def test_what_was_over_before_its_predecessor_took_nothing():
    assert durations(10.0, {"paddle": 14.0, "weights": 13.0, "warm_up": 15.0}) == {
        "paddle": 4.0,
        "weights": 0.0,
        "warm_up": 1.0,
    }


def test_only_the_first_end_of_a_stage_counts_and_others_are_refused():
    stages = StartStages(1.0, {"replica": 2.0})
    stages.end("runner", 3.0)
    stages.end("runner", 9.0)
    assert stages.figures(4.0)["seconds"] == {"replica": 1.0, "runner": 1.0}
    with pytest.raises(ValueError, match="allowed: replica, runner"):
        stages.end("lunch", 5.0)


def test_line_is_a_bar_then_the_stages_then_nothing():
    stages = StartStages(0.0)
    assert start_line(stages.figures(1.0)) == "[....................] replica after 1.0 s"
    for second, stage in enumerate(STAGES[:4], 1):
        stages.end(stage, second)
    line = start_line(stages.figures(4.5))
    assert line == "[##########..........] weights after 4.5 s (replica 1.0, runner 1.0, paddle 1.0, ops 1.0)"
    stages.tell("model from node a, 43 %")
    assert start_line(stages.figures(4.5)).startswith("[##########..........] model from node a, 43 % after 4.5 s (")
    for second, stage in enumerate(STAGES[4:8], 5):
        stages.end(stage, second)
    assert start_line(stages.figures(9.0)).startswith("started in 8.0 s (replica 1.0, ")
    assert start_line(stages.figures(100.0)) == ""
    assert start_fields(stages.figures(9.0))["warm_up_s"] == "1.00"


def test_what_comes_after_ready_is_not_of_the_start():
    stages = StartStages(0.0, dict.fromkeys(STAGES[:8], 5.0))
    stages.end("first_token", 50.0)
    figures = stages.figures(60.0)
    assert figures["total_s"] == 5.0
    assert figures["seconds"]["first_token"] == 45.0
