"""The next plan is made late, but never so late that the device waits."""

from __future__ import annotations

import pytest

from actors.engine.stats.step_clock import (
    FIRST_LEAD_S,
    LEAD_FACTOR,
    MARGIN_S,
    MIN_ERROR,
    SHORTEST_WAIT_S,
    TOLD_ERROR,
    UNTOLD_ERROR,
    WAITED_S,
    StepClock,
)

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


def look(clock: StepClock, now: float, left: float) -> float:
    return clock.seconds_to_wait(now, 8, NOW, left)


def test_a_device_that_tells_how_far_it_is_is_asked_again_and_then_little_is_left_to_be_wrong_about():
    clock = StepClock()
    clock.launched(1.0, 1.001)
    for seconds in (0.10, 0.09, 0.5):  # of which the forward is four fifths
        clock.saved(8, NOW - seconds, NOW - seconds / 2, NOW, seconds, 0.8 * seconds)
    margin = LEAD_FACTOR * 0.001 + MARGIN_S
    first = look(clock, NOW, 1.0)
    assert first == pytest.approx((1 - UNTOLD_ERROR) * (0.09 - margin))
    # It takes longer than any before: half of the forward is left by then, and the sampling.
    second = look(clock, NOW + first, 0.5)
    assert second == pytest.approx((1 - TOLD_ERROR) * ((0.5 * 0.8 + 0.2) * 0.09 - margin))
    # No layer more, so nothing new is known.
    assert look(clock, NOW + first + second, 0.5) == 0
    plan_at = NOW + first + second
    clock.launched(NOW, plan_at + 0.002)
    # What the host needed counts from the last moment that it waited for; of another step anything is news.
    margin = LEAD_FACTOR * 0.002 + MARGIN_S
    assert look(clock, NOW + 1, 0.5) == pytest.approx((1 - UNTOLD_ERROR) * (0.054 - margin))
    assert look(clock, NOW + 1, 0.0) == pytest.approx((1 - TOLD_ERROR) * (0.018 - margin))


def test_a_step_that_is_quicker_than_all_before_is_waited_for_by_its_own_pace():
    clock = StepClock()
    for _ in range(100):
        clock.launched(1.0, 1.0)
    clock.saved(8, NOW - 0.1, NOW - 0.05, NOW, 0.1, 0.08)
    assert look(clock, NOW, 1.0) == pytest.approx((1 - UNTOLD_ERROR) * (0.1 - MARGIN_S))
    # Three quarters of its forward took 0.03 s, so the last one takes a hundredth.
    assert look(clock, NOW + 0.03, 0.25) == pytest.approx((1 - TOLD_ERROR) * (0.01 + 0.02 - MARGIN_S))


def test_what_is_not_worth_another_look_is_not_waited_for():
    clock = StepClock()
    for _ in range(100):
        clock.launched(1.0, 1.0)
    clock.saved(8, NOW - 0.01, NOW - 0.005, NOW, 0.01, 0.01)
    assert look(clock, NOW, 1.0) > 0
    shortest = (SHORTEST_WAIT_S / (1 - TOLD_ERROR) + MARGIN_S) / 0.01
    assert look(clock, NOW + 1, 0.99 * shortest) == 0
    assert look(clock, NOW + 1, 1.01 * shortest) > 0
