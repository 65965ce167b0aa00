"""Places that are kept: each is released once, and nobody gives back or takes those of another reservation."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.requests.place_reservations import RESERVED_FOR_S, PlaceReservations
from tests.jumping_loop import JumpingLoop

names = st.sampled_from("ab")
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), names, st.integers(0, 3)),
        st.tuples(st.just("take"), names, st.integers(0, 5)),
        st.tuples(st.just("give back"), names, st.integers(0, 5)),
        st.tuples(st.just("wait"), names, st.integers(0, 3)),
    ),
    max_size=30,
)


@given(events)
def test_each_place_is_taken_or_released_once_and_by_its_owner(events):
    loop = JumpingLoop()
    try:
        loop.run_until_complete(_play(events, loop))
    finally:
        loop.close()


async def _play(events, loop) -> None:
    released: list[int] = []
    kept = PlaceReservations(released.append)
    made: list[tuple[int, str, float]] = []  # number, whose, until when
    left: Counter[int] = Counter()
    num_kept = num_taken = 0
    for what, who, value in events:
        number, owner, until = made[value % len(made)] if made else (7, "", 0.0)
        there = left[number] if owner == who and loop.time() < until else 0
        if what == "add":
            number = kept.add(who, value)
            assert bool(number) == bool(value)
            made += [(number, who, loop.time() + RESERVED_FOR_S)] * bool(number)
            left[number] = value
            num_kept += value
        elif what == "take":
            assert kept.take(who, number) == (there > 0)
            left[number] -= there > 0
            num_taken += there > 0
        elif what == "give back":
            kept.give_back(who, number, value)
            left[number] -= min(there, value)
        else:
            await asyncio.sleep(0.7 * value)
        lasting = {number for number, _, until in made if loop.time() < until}
        assert len(kept) == sum(left[number] for number in lasting)
        assert sum(released) == num_kept - num_taken - len(kept)
    await asyncio.sleep(RESERVED_FOR_S)
    assert not len(kept) and sum(released) == num_kept - num_taken


async def test_numbers_of_two_engines_differ():
    one, other = PlaceReservations(lambda count: None), PlaceReservations(lambda count: None)
    number = one.add("a", 1)
    other.add("a", 1)
    assert number != 0 and not other.take("a", number) and one.take("a", number)
    assert one.take("a", number) is False
