"""Where an arrival may go: nobody who waits and is as urgent is overtaken, and no room is left while nobody waits."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.candidates import EngineCandidate, RequestView, candidates
from cluster.routing.lines import Line, open_to_arrival
from cluster.scaling.balance import MIN_WAIT_S, BalanceView, moves

lines = st.lists(
    st.builds(
        Line,
        st.integers(0, 20).map(str),
        st.booleans(),
        open_places=st.integers(-1, 6),
        num_sent=st.integers(0, 4),
        length=st.one_of(st.just(0), st.integers(0, 6)),
        priority=st.integers(-1, 1),
        free=st.integers(-1, 6),
    ),
    max_size=6,
    unique_by=lambda line: line.engine_id,
)


@given(lines, st.integers(-1, 1))
def test_the_places_of_those_who_wait_are_left_to_them(known, priority):
    open_to = open_to_arrival(known, priority)
    assert open_to <= {line.engine_id for line in known} and bool(open_to) == bool(known)
    waiting = sum(line.length for line in known if line.priority <= priority)
    places = {line.engine_id: line.open_places - line.num_sent for line in known if line.is_known and not line.length}
    room = sum(max(0, left) for left in places.values())
    behind = {e.engine_id for e in known if e.length and e.priority <= priority and e.free > e.num_sent}
    if waiting and room <= waiting and behind:
        assert open_to == behind
    elif room > waiting:
        # It begins at once, and one place is left for each who waits; or nobody is known to wait.
        assert all(places.get(engine_id, 1 - bool(waiting)) > 0 for engine_id in open_to)


@given(lines)
def test_who_is_more_urgent_than_all_who_wait_goes_as_if_nobody_waited(known):
    urgent = [line for line in known if not line.length]
    assert open_to_arrival(known, -2) >= open_to_arrival(urgent) or not urgent


def test_a_second_arrival_counts_the_first():
    new, full = Line("new", open_places=3), Line("full", length=2)
    assert open_to_arrival([full, new]) == {"new"}
    assert open_to_arrival([full, new._replace(num_sent=1)]) == {"full"}


def test_an_engine_that_has_not_spoken_gets_nothing_while_others_wait():
    new = Line("new", is_known=False)
    assert open_to_arrival([Line("full", length=1), new]) == {"full"}
    assert open_to_arrival([Line("full"), new]) == {"full", "new"}
    assert open_to_arrival([Line("free", open_places=1), new]) == {"free", "new"}


def test_the_line_of_an_engine_that_is_late_counts_and_its_places_do_not():
    late = Line("late", is_known=False, length=3)
    assert open_to_arrival([late, Line("free", open_places=3)]) == {"late"}
    assert open_to_arrival([Line("full", length=1), Line("late", is_known=False, open_places=3)]) == {"full"}


def test_an_engine_that_is_not_open_is_chosen_where_none_is():
    closed, avoided = EngineCandidate("closed", is_open=False), EngineCandidate("avoided", is_avoided=True)
    assert candidates(RequestView(), [closed, EngineCandidate("open")]) == [EngineCandidate("open")]
    assert candidates(RequestView(), [closed, avoided]) == [closed]


@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(2, 4), st.booleans())
def test_in_a_fleet_requests_begin_in_the_order_in_which_they_come(rng, num_slots, num_engines, moves_late):
    """Engines that start full, but for one: arrivals, ends of answers, and moves after each of them or late."""
    running = {str(n): num_slots if n else 0 for n in range(num_engines)}
    line: dict[str, deque[int]] = {engine: deque() for engine in running}
    line["1"].extend(range(6))
    begun: list[int] = []
    with_room_for_all: set[int] = set()
    number = 6

    def num_places(engine):
        return max(0, num_slots - running[engine] - len(line[engine]))

    def move():
        views = [BalanceView(e, len(line[e]), MIN_WAIT_S * bool(line[e]), num_places(e)) for e in running]
        for move in moves(views):
            for _ in range(move.num_requests):
                running[move.target] += 1
                begun.append(line[move.source].popleft())

    for _ in range(60):
        if rng.random() < 0.6:
            waiting, places = sum(map(len, line.values())), sum(map(num_places, running))
            known = [Line(e, open_places=num_places(e), length=len(line[e])) for e in running]
            line[rng.choice(sorted(open_to_arrival(known)))].append(number)
            if places > waiting:
                with_room_for_all.add(number)
            number += 1
        else:
            engine = rng.choice(sorted(running))
            running[engine] = max(0, running[engine] - 1)
        for engine in running:
            while line[engine] and running[engine] < num_slots:
                running[engine] += 1
                begun.append(line[engine].popleft())
        if not moves_late or rng.random() < 0.3:
            move()
    if moves_late:
        begun = [one for one in begun if one not in with_room_for_all]
    assert begun == sorted(begun)
