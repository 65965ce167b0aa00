"""Moves of waiting requests: within bounds, none under a constant load, nobody twice, the longest wait first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.balance import MIN_WAIT_S, BalanceView, Move, is_worth_moving, moves

waits = st.floats(0, 100, allow_nan=False)
views = st.lists(
    st.builds(
        BalanceView,
        st.integers(0, 20).map(str),
        st.integers(0, 40),
        oldest_wait_s=waits,
        open_places=st.integers(-2, 20),
    ),
    max_size=8,
    unique_by=lambda view: view.engine_id,
)


@given(views)
def test_no_engine_gives_or_takes_more_than_it_has(engines):
    by_id = {view.engine_id: view for view in engines}
    given_away, taken = Counter(), Counter()
    for move in moves(engines):
        assert move.num_requests > 0 and move.source != move.target
        given_away[move.source] += move.num_requests
        taken[move.target] += move.num_requests
    assert all(count <= by_id[engine_id].num_movable for engine_id, count in given_away.items())
    assert all(count <= by_id[engine_id].open_places for engine_id, count in taken.items())
    assert all(by_id[engine_id].oldest_wait_s >= MIN_WAIT_S for engine_id in given_away)


@given(views)
def test_when_the_moves_are_made_nobody_moves_again(engines):
    after = {view.engine_id: view for view in engines}
    for move in moves(engines):
        source, target = after[move.source], after[move.target]
        after[move.source] = source._replace(num_movable=source.num_movable - move.num_requests)
        after[move.target] = target._replace(open_places=target.open_places - move.num_requests)
    assert moves(list(after.values())) == []


@given(views)
def test_a_place_stays_open_only_when_nobody_could_move(engines):
    made = moves(engines)
    places = sum(max(0, view.open_places) for view in engines if not view.num_movable)
    could = sum(view.num_movable for view in engines if view.oldest_wait_s >= MIN_WAIT_S and view.open_places <= 0)
    assert sum(move.num_requests for move in made) == min(places, could)


class Crowd:
    """Engines whose load stays as it is, and ingresses that decide one after the other from words of different age. Engines grant
    each place once, as ``actors.place_reservations`` and the scheduler do."""

    def __init__(self, slots: int, running: list[int], lines: list[list[int]], num_ingresses: int) -> None:
        self.slots, self.running, self.lines = (
            slots,
            running,
            lines,
        )  # lines: by engine, whose each request is that waits
        self.moved = 0
        self.words = [[self.say(ingress, e) for e in range(len(running))] for ingress in range(num_ingresses)]

    def say(self, ingress: int, engine: int) -> BalanceView:
        line = self.lines[engine]
        places = max(0, self.slots - self.running[engine] - len(line))
        return BalanceView(str(engine), line.count(ingress), MIN_WAIT_S * bool(line), places)

    def hear(self, ingress: int, engine: int) -> None:
        self.words[ingress][engine] = self.say(ingress, engine)

    def decide(self, ingress: int) -> int:
        """Make the moves that the words ask for; returns how many were made."""
        made = 0
        for move in moves(self.words[ingress]):
            source, target = int(move.source), int(move.target)
            granted = min(move.num_requests, max(0, self.slots - self.running[target] - len(self.lines[target])))
            given = min(granted, self.lines[source].count(ingress))
            for _ in range(given):
                self.lines[source].remove(ingress)
            self.running[target] += given  # they begin in the next step, so that none of them waits again
            assert self.running[target] <= self.slots, "no engine gets more than it has places, whoever sends"
            made += given
            self.hear(ingress, source)
            self.hear(ingress, target)
        self.moved += made
        return made


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 2), max_size=6)), min_size=2, max_size=5),
    st.lists(st.tuples(st.sampled_from(["hear", "decide"]), st.integers(0, 2), st.integers(0, 4)), max_size=60),
)
def test_over_many_rounds_of_several_ingresses_a_constant_load_comes_to_rest(slots, engines, events):
    """Where a line is, the engine is full, as the scheduler has it."""
    running = [slots if line else min(slots, count) for count, line in engines]
    crowd = Crowd(slots, running, [list(line) for _, line in engines], 3)
    num_waiting = sum(map(len, crowd.lines))
    total = num_waiting + sum(crowd.running)
    for what, ingress, engine in events:
        if what == "decide":
            crowd.decide(ingress)
        elif engine < len(engines):
            crowd.hear(ingress, engine)
    for _ in range(2):  # words of all, and each decides
        for ingress in range(3):
            for engine in range(len(engines)):
                crowd.hear(ingress, engine)
            crowd.decide(ingress)
    assert crowd.moved <= num_waiting, "nobody moves twice"
    assert sum(map(len, crowd.lines)) + sum(crowd.running) == total
    places = sum(crowd.slots - count for count, line in zip(crowd.running, crowd.lines) if not line)
    assert not places or not any(crowd.lines), "nobody waits while there is a place"
    for _ in range(5):  # from then on nothing moves
        for ingress in range(3):
            for engine in range(len(engines)):
                crowd.hear(ingress, engine)
            assert moves(crowd.words[ingress]) == [], "none is asked for, so that none has to be refused"


def test_one_new_engine_takes_as_many_as_it_has_places():
    full, new = BalanceView("full", 24, 5.0), BalanceView("new", open_places=8)
    assert moves([full, new]) == [Move("full", "new", 8)]


def test_the_longest_wait_goes_first_and_the_emptiest_engine_takes():
    long, short = BalanceView("long", 2, 10.0), BalanceView("short", 2, 1.0)
    assert moves([short, long, BalanceView("a", open_places=1), BalanceView("b", open_places=2)]) == [
        Move("long", "b", 2),
        Move("short", "a", 1),
    ]


def test_who_has_just_come_does_not_move():
    assert moves([BalanceView("full", 8, MIN_WAIT_S / 2), BalanceView("idle", open_places=8)]) == []


def test_a_cached_prompt_moves_when_it_has_waited_as_long_as_it_takes_to_compute():
    assert is_worth_moving(MIN_WAIT_S, 0, 100.0)
    assert not is_worth_moving(1.0, 1000, 100.0)
    assert is_worth_moving(10.0 + MIN_WAIT_S, 1000, 100.0)
    assert is_worth_moving(MIN_WAIT_S, 1000, 0.0)
