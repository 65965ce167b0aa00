"""The next plan is made late, but never so late that the device waits."""

from __future__ import annotations

from actors.step_clock import MARGIN_S, StepClock


def test_nothing_is_predicted_of_a_size_that_was_never_seen():
    clock = StepClock()
    clock.observe(8, 0.02)
    assert clock.seconds_to_wait(64, 0.0) == 0
    assert clock.seconds_to_wait(0, 0.0) == 0


def test_the_shortest_of_the_last_steps_counts_less_a_margin():
    clock = StepClock()
    for seconds in (0.030, 0.020, 0.025):
        clock.observe(8, seconds)
    assert abs(clock.seconds_to_wait(9, 0.004) - (0.020 - MARGIN_S - 0.004)) < 1e-9
    assert clock.seconds_to_wait(9, 0.018) == 0


def test_old_steps_are_forgotten():
    clock = StepClock()
    clock.observe(8, 0.001)
    for _ in range(8):
        clock.observe(8, 0.1)
    assert clock.seconds_to_wait(8, 0.0) > 0.08


def test_short_steps_are_never_waited_for():
    clock = StepClock()
    clock.observe(1, MARGIN_S)
    assert clock.seconds_to_wait(1, 0.0) == 0
