"""How long engines took to start, as the controller sees them come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.starts import LONGEST_START_S, MAX_STARTS, Starts, looked


def test_a_start_takes_from_the_decision_until_the_engine_serves():
    starts = looked(Starts(), 1000.0, 1, {"a"})
    assert starts.start_s(15.0) == 15.0, "who was there was not seen to start"
    starts = looked(starts, 1001.0, 3, {"a"})
    starts = looked(starts, 1005.0, 3, {"a", "b"})
    starts = looked(starts, 1011.0, 3, {"a", "b", "c"})
    assert starts.took_s == (4.0, 10.0) and starts.start_s(15.0) == 7.0 and starts.wanted_at == ()


def test_who_takes_the_place_of_another_and_who_is_not_wanted_any_more_do_not_count():
    starts = looked(looked(Starts(), 0.0, 2, {"a", "b"}), 1.0, 2, {"a"})
    starts = looked(starts, 9.0, 2, {"a", "c"})
    assert starts.took_s == ()
    starts = looked(looked(starts, 10.0, 4, {"a", "c"}), 11.0, 3, {"a", "c"})
    assert starts.wanted_at == (10.0,)
    starts = looked(starts, 12.0 + LONGEST_START_S, 3, {"a", "c", "d"})
    assert (starts.wanted_at, starts.took_s) == ((), ())


def test_who_serves_before_the_decision_was_seen_leaves_nothing_behind():
    starts = looked(looked(Starts(), 0.0, 0, set()), 9.0, 1, {"a"})
    assert starts.wanted_at == ()
    starts = looked(looked(starts, 20.0, 2, {"a"}), 25.0, 2, {"a", "b"})
    assert starts.took_s == (5.0,)


looks = st.tuples(st.floats(0, 100), st.integers(0, 9), st.sets(st.sampled_from("abcdefgh")))


@given(st.lists(looks, max_size=30))
def test_what_is_remembered_is_bounded(sequence):
    starts, now = Starts(), 0.0
    for later, target, ready in sequence:
        now += later
        starts = looked(starts, now, target, ready)
        assert len(starts.took_s) <= MAX_STARTS and len(starts.wanted_at) <= 9
        assert all(0 <= took <= LONGEST_START_S for took in starts.took_s)
