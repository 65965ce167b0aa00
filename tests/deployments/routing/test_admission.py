"""The sequences of a request are taken together or refused together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.outputs import EngineLoad
from deployments.routing.admission import EndRate, num_booked_for, places_of_a_key, refusal, share_refusal


@pytest.mark.parametrize(
    ("rooms", "num_booked", "wanted", "is_taken"),
    [
        ([EngineLoad(3, 8)], 0, 3, True),
        ([EngineLoad(3, 8)], 0, 4, False),
        ([EngineLoad(3, 8), EngineLoad(1, 8)], 0, 4, True),
        ([EngineLoad(3, 8)], 1, 3, False),
        ([EngineLoad(0, 8)], 0, 1, False),
        ([EngineLoad(-2, 8), EngineLoad(2, 8)], 0, 1, False),
        # More than may ever wait: only where nothing does.
        ([EngineLoad(8, 8)], 0, 100, True),
        ([EngineLoad(8, 8)], 1, 100, False),
    ],
)
def test_a_request_is_taken_where_all_of_its_sequences_find_room(rooms, num_booked, wanted, is_taken):
    error = refusal(rooms, num_booked, wanted, 0.0)
    assert (error is None) == is_taken
    if error is not None:
        assert (error.status, error.code, error.headers) == (429, "overloaded", {"Retry-After": "1"})


def test_a_refusal_says_what_is_full_and_what_was_asked():
    full = [EngineLoad(0, 8), EngineLoad(2, 8)]
    one, several, too_many = (refusal(full, 2, wanted, 0.0).message for wanted in (1, 4, 17))
    assert one == "16 requests are waiting, the limit is 16"
    assert "4 sequences (prompts times n), which are taken together" in several
    assert "17 sequences (prompts times n) and is taken when no other waits" in too_many


@pytest.mark.parametrize(
    ("num_waiting", "wanted", "is_taken"),
    [
        (0, 6, True),  # half of eight places, and two slots
        (1, 6, True),
        (3, 4, False),
        (2, 4, True),
        (5, 1, True),
        (6, 1, False),
        (0, 100, True),
        (3, 100, False),
    ],
)
def test_a_key_gets_its_share_of_the_queue_for_sequences_that_come_together(num_waiting, wanted, is_taken):
    error = share_refusal(num_waiting, wanted, [EngineLoad(5, 8)], 2, 0.5)
    assert (error is None) == is_taken
    if error is not None:
        assert error.status == 429 and "its share of the queue (max_queue_share: 4 of 8)" in error.message


@pytest.mark.parametrize(
    ("tenant", "room", "unplaced", "waiting", "booked"),
    [
        ("b", EngineLoad(12, 8), {"a": 100}, {}, 8),  # four slots, and half of eight places
        ("b", EngineLoad(4, 8), {"a": 100}, {"a": 4}, 0),  # engines refuse what more it sends
        ("b", EngineLoad(6, 8), {"a": 100, "b": 1}, {"a": 2}, 3),
        ("b", EngineLoad(8, 8), {"a": 3}, {}, 3),
        ("a", EngineLoad(4, 8), {"a": 100}, {"a": 4}, 100),
    ],
)
def test_what_a_key_sends_beyond_its_share_takes_no_place_from_others(tenant, room, unplaced, waiting, booked):
    assert num_booked_for(tenant, unplaced, waiting, [room], 0.5) == booked


@pytest.mark.parametrize(("ends_per_s", "seconds"), [(0.0, 1), (100.0, 1), (2.0, 4), (0.7, 12), (1e-9, 30)])
def test_a_client_is_told_to_come_back_when_its_room_may_be_there(ends_per_s, seconds):
    error = refusal([EngineLoad(-4, 8)], 0, 4, ends_per_s)
    assert error.headers == {"Retry-After": str(seconds)}


def test_the_rate_of_ends_follows_the_engine():
    time = [0.0]
    rate = EndRate(lambda: time[0])
    rate.count(1000)  # before this ingress listened
    assert rate.per_s == 0
    for second in range(1, 61):
        time[0] = float(second)
        rate.count(1000 + 4 * second)
    assert rate.per_s == pytest.approx(4, rel=0.1)
    time[0] += 60
    assert rate.per_s < 0.02


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9)),
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9)),
    st.lists(st.builds(EngineLoad, st.integers(-4, 12), st.integers(0, 12)), min_size=1, max_size=3),
    st.floats(0.1, 1.0),
)
def test_while_all_keys_have_less_than_one_may_have_all_that_is_on_its_way_takes_places(
    unplaced, to_begin, rooms, share
):
    if max(sum(unplaced.values()), sum(to_begin.values())) <= places_of_a_key(rooms, share):
        waiting = {key: max(0, to_begin.get(key, 0) - count) for key, count in unplaced.items()}
        assert num_booked_for("a", unplaced, waiting, rooms, share) == sum(unplaced.values())
