"""The next plan is made late, but never so late that the device waits."""

from __future__ import annotations

import pytest

from actors.engine.stats.step_clock import FIRST_LEAD_S, LEAD_FACTOR, MARGIN_S, MIN_ERROR, WAITED_S, StepClock

NOW = 1000.0


def save(clock: StepClock, tokens: int, seconds: float, now: float = NOW) -> float:
    """A step of ``seconds`` that the host has seen to end ``now``; now."""
    clock.saved(tokens, now - seconds, now - seconds / 2, now, seconds)
    return now


def expected_wait(step: float, lead: float, error: float = MIN_ERROR) -> float:
    return step - LEAD_FACTOR * lead - MARGIN_S - error * step


def test_nothing_is_predicted_of_a_size_that_was_never_seen():
    clock = StepClock()
    now = save(clock, 8, 0.02)
    assert clock.seconds_to_wait(NOW, 64, now) == 0
    assert clock.seconds_to_wait(NOW, 0, now) == 0


def test_steps_of_similar_size_stand_for_each_other():
    clock = StepClock()
    now = save(clock, 64, 0.5)
    assert clock.seconds_to_wait(NOW, 79, now) > 0
    assert clock.seconds_to_wait(NOW, 80, now) == 0


def test_the_shortest_of_the_last_steps_counts_less_what_host_and_prediction_need():
    clock = StepClock()
    clock.launched(1.0, 1.002)
    clock.launched(1.0, 1.001)
    for seconds in (0.30, 0.24, 0.25):
        now = save(clock, 8, seconds)
    wanted = expected_wait(0.24, 0.002, error=1 - 0.24 / 0.30)
    assert clock.seconds_to_wait(NOW, 8, now - 0.01) == pytest.approx(wanted)
    # It began when the one before ended.
    assert clock.seconds_to_wait(NOW, 8, now - 10) == pytest.approx(wanted)


def test_a_host_that_was_late_leaves_itself_more_time():
    clock = StepClock()
    clock.launched(1.0, 1.0005)
    now = save(clock, 8, 0.2)
    first = clock.seconds_to_wait(NOW, 8, now)
    clock.launched(now, now + first + 0.02)  # 0.02 s after the moment it was to begin
    now = save(clock, 8, 0.2, now + 0.2)
    assert clock.seconds_to_wait(now, 8, now) == pytest.approx(expected_wait(0.2, 0.02))


def test_a_step_that_ended_unseen_does_not_make_the_next_one_seem_to_begin_late():
    """As while the host launched a prompt's step op by op: what it then calls waiting is the time that asking takes."""
    clock = StepClock()
    clock.launched(1.0, 1.0005)
    now = NOW
    clock.saved(8, now - 0.5, now - 0.5, now - 0.4, 0.1)  # seen to end 0.4 s ago
    clock.saved(8, now - 0.45, now - WAITED_S / 2, now, 0.1)  # so this one ended 0.3 s ago
    assert clock.seconds_to_wait(NOW, 8, now - 0.35) == 0
    clock.saved(8, now - 0.35, now - 0.1, now, 0.1)
    assert clock.seconds_to_wait(NOW, 8, now - 0.35) > 0


def test_old_steps_are_forgotten():
    clock = StepClock()
    save(clock, 8, 0.01)
    for _ in range(8):
        now = save(clock, 8, 0.5)
    assert clock.seconds_to_wait(NOW, 8, now) > 0.4


def test_steps_shorter_than_what_the_host_needs_are_never_waited_for():
    clock = StepClock()
    now = save(clock, 1, FIRST_LEAD_S)
    assert clock.seconds_to_wait(NOW, 1, now) == 0
    for _ in range(100):
        clock.launched(1.0, 1.0001)
    now = save(clock, 1, 0.1)
    save(clock, 2, 0.0011)
    assert 0 < clock.seconds_to_wait(NOW, 2, NOW) < 0.0011
