"""Where an arrival may go: nobody who waits and is as urgent is overtaken, and no room is left while nobody waits."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.candidates import EngineCandidate, RequestView, candidates
from cluster.routing.lines import Line, must_wait, open_to_arrival
from cluster.scaling.balance import MIN_WAIT_S, BalanceView, moves

lines = st.lists(
    st.builds(
        Line,
        st.integers(0, 20).map(str),
        st.booleans(),
        open_places=st.integers(-1, 6),
        num_sent=st.integers(0, 4),
        sent_priority=st.integers(-1, 1),
        length=st.one_of(st.just(0), st.integers(0, 6)),
        priority=st.integers(-1, 1),
        free=st.integers(-1, 6),
        waited_s=st.sampled_from([0.0, 1.0, 2.0]),
    ),
    max_size=6,
    unique_by=lambda line: line.engine_id,
)


@given(lines, st.integers(-1, 1))
def test_the_places_of_those_who_wait_are_left_to_them(known, priority):
    open_to = open_to_arrival(known, priority)
    assert open_to <= {line.engine_id for line in known} and bool(open_to) == bool(known)
    waiting = {line.engine_id: line.num_waiting(priority) for line in known if line.num_waiting(priority)}
    spoke = {line.engine_id for line in known if line.is_known}
    places = {line.engine_id: max(0, line.places_left) for line in known if line.is_known}
    takes = {line.engine_id for line in known if line.free > line.num_sent}
    if sum(places.values()) > sum(waiting.values()):
        # It begins at once, and one place is left for each who waits; or nobody is known to wait.
        assert all(places.get(engine_id, 1 - bool(waiting)) > 0 for engine_id in open_to)
    elif waiting and any(not places[engine_id] for engine_id in spoke & takes):
        assert not any(places[engine_id] for engine_id in open_to), "no place is taken from those who wait"
        behind = {line.engine_id for line in known if line.length and line.priority <= priority} & spoke & takes
        behind = {
            line.engine_id: line.waited_s for line in known if line.engine_id in behind and not places[line.engine_id]
        }
        assert open_to <= behind.keys() or not behind
        assert {behind[engine_id] for engine_id in open_to} == {max(behind.values())} if behind else True
    assert not spoke or not waiting or open_to <= spoke, "behind an engine that has fallen silent nobody is sent"


@given(lines, st.integers(-1, 1))
def test_who_waits_at_the_ingress_is_who_would_take_the_place_of_another(known, priority):
    places = {line.engine_id: max(0, line.places_left) for line in known if line.is_known}
    waiting = sum(line.num_waiting(priority) for line in known if line.is_known)
    open_to = open_to_arrival(known, priority)
    takes_one = any(places.get(e) for e in open_to)
    if must_wait(known, priority):
        assert 0 < sum(places.values()) <= waiting, "there is a place for somebody who waits"
        assert any(line.free <= line.num_sent for line in known if line.is_known), "nobody asks where no queue is full"
        assert not any(line.free > line.num_sent for line in known if line.is_known and not places[line.engine_id])
        assert open_to == {e for e, n in places.items() if n}, "who goes all the same is refused nowhere"
    elif waiting >= sum(places.values()) > 0:
        assert not takes_one, "who goes takes no place"
    assert not must_wait(known, -2), "who is more urgent than all who wait never does"


@given(lines)
def test_who_is_more_urgent_than_all_who_wait_goes_where_there_is_room(known):
    room = {line.engine_id for line in known if line.is_known and line.places_left > 0}
    assert open_to_arrival(known, -2) >= room


def test_a_second_arrival_counts_the_first():
    new, full = Line("new", open_places=3), Line("full", length=2)
    assert open_to_arrival([full, new]) == {"new"}
    assert open_to_arrival([full, new._replace(num_sent=1)]) == {"full"}


def test_who_was_sent_beyond_the_places_waits_though_the_engine_has_not_said_so_yet():
    free, full = Line("free", open_places=1), Line("full", num_sent=2, free=9)
    assert open_to_arrival([free, full]) == {"full"}
    assert open_to_arrival([free, full, Line("other full")]) == {"full", "other full"}, "who comes together spreads out"
    assert open_to_arrival([free, full._replace(open_places=2)]) == {"free"}
    assert open_to_arrival([free, full._replace(sent_priority=1)]) == {"free"}, "who was sent gives way"
    assert open_to_arrival([free, full._replace(sent_priority=1)], 1) == {"full"}
    assert Line("full", num_sent=2, length=3).num_waiting(0) == 5


def test_who_comes_stands_behind_who_has_waited_longest_where_several_lines_take_it():
    long, short = Line("long", length=1, waited_s=3.0, free=1), Line("short", length=9, waited_s=2.0, free=9)
    assert open_to_arrival([short, long]) == {"long"}
    assert open_to_arrival([short, long._replace(free=0)]) == {"short"}, "its queue is full"
    assert open_to_arrival([short, long._replace(waited_s=2.0)]) == {"long", "short"}


def test_an_engine_that_has_not_spoken_gets_nothing_while_others_wait():
    new = Line("new", is_known=False)
    assert open_to_arrival([Line("full", length=1), new]) == {"full"}
    assert open_to_arrival([Line("full"), new]) == {"full", "new"}
    assert open_to_arrival([Line("free", open_places=1), new]) == {"free", "new"}


def test_the_line_of_an_engine_that_is_late_counts_and_neither_its_places_nor_its_room_do():
    late, free, full = Line("late", is_known=False, length=3), Line("free", open_places=3), Line("full")
    assert open_to_arrival([late, free, full]) == {"full"}, "there it deprives nobody of a place"
    assert open_to_arrival([late, free]) == {"free"}, "nobody can move out of the other before it speaks"
    assert open_to_arrival([late, free._replace(open_places=4)]) == {"free"}
    assert open_to_arrival([Line("full", length=1), Line("late", is_known=False, open_places=3)]) == {"full"}
    assert open_to_arrival([late]) == {"late"}


def test_an_engine_that_is_not_open_is_chosen_where_none_is():
    closed, avoided = EngineCandidate("closed", is_open=False), EngineCandidate("avoided", is_avoided=True)
    assert candidates(RequestView(), [closed, EngineCandidate("open")]) == [EngineCandidate("open")]
    assert candidates(RequestView(), [closed, avoided]) == [closed]


@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(2, 4), st.booleans(), st.integers(6, 20))
def test_in_a_fleet_requests_begin_in_the_order_in_which_they_come(rng, num_slots, num_engines, moves_late, queue):
    """Engines that start full, but for one: arrivals, ends of answers, and moves after each of them or late. Queues may be full:
    who comes then waits at the ingress until there is room in one, or is refused."""
    running = {str(n): num_slots if n else 0 for n in range(num_engines)}
    line: dict[str, deque[int]] = {engine: deque() for engine in running}
    line["1"].extend(range(6))
    begun: list[int] = []
    held: deque[int] = deque()
    with_room_for_all: set[int] = set()
    number = 6

    def num_places(engine):
        return max(0, num_slots - running[engine] - len(line[engine]))

    def lines_now():
        free = {e: num_slots + queue - running[e] - len(line[e]) for e in running}
        return [Line(e, open_places=num_places(e), length=len(line[e]), free=free[e]) for e in running]

    def arrive(number, known, waiting, places):
        open_to = sorted(open_to_arrival(known))
        if places > waiting:
            with_room_for_all.add(number)
        elif waiting and not any(line[e] for e in open_to):
            return  # it is refused, or would begin another line, beside which it stands in no order
        line[rng.choice(open_to)].append(number)

    def move():
        views = [BalanceView(e, len(line[e]), MIN_WAIT_S * bool(line[e]), num_places(e)) for e in running]
        for move in moves(views):
            for _ in range(move.num_requests):
                running[move.target] += 1
                begun.append(line[move.source].popleft())

    for _ in range(60):
        if rng.random() < 0.6:
            waiting, places = sum(map(len, line.values())), sum(map(num_places, running))
            known = lines_now()
            if held or must_wait(known):
                held.append(number)
            else:
                arrive(number, known, waiting, places)
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
        while held and not must_wait(known := lines_now()):
            arrive(held.popleft(), known, sum(map(len, line.values())), sum(map(num_places, running)))
    if moves_late:
        begun = [one for one in begun if one not in with_room_for_all]
    assert begun == sorted(begun)
