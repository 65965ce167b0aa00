"""Moves of waiting requests, to places and into one line: within bounds, none under a constant load, nobody twice, the longest
wait first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.balance import MIN_WAIT_S, SAME_TIME_S, BalanceView, Move, is_worth_moving, line_moves, moves

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
    each place once, as ``actors.requests.place_reservations`` and the scheduler do."""

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


@st.composite
def line_views(draw) -> list[BalanceView]:
    names = draw(st.lists(st.integers(0, 20).map(str), max_size=6, unique=True))
    found = []
    for name in names:
        length = draw(st.integers(0, 20))
        waits = st.one_of(st.sampled_from([1.0, 1.0 + SAME_TIME_S, 2.0]), st.floats(0, 100, allow_nan=False))
        found.append(
            BalanceView(
                name,
                draw(st.integers(0, length)),
                open_places=draw(st.sampled_from([0, 0, 0, 2])),
                line_length=length,
                longest_wait_s=draw(waits),
                line_room=draw(st.integers(-5, 40)),
            )
        )
    return found


@given(line_views())
def test_lines_are_given_as_a_whole_to_the_oldest_one_and_no_more_than_it_has_room_for(engines):
    by_id = {view.engine_id: view for view in engines}
    made = line_moves(engines)
    lines = [view for view in engines if view.line_length and view.open_places <= 0]
    assert len({move.target for move in made}) <= 1
    assert len({move.source for move in made}) == len(made)
    for move in made:
        source, target = by_id[move.source], by_id[move.target]
        assert source in lines and target in lines, (
            "nobody goes to a line where there is none, or where a place is open"
        )
        assert target.longest_wait_s == max(view.longest_wait_s for view in lines)
        assert target.longest_wait_s - source.longest_wait_s > SAME_TIME_S
        assert 0 < move.num_requests == source.num_movable
    # All ingresses together, each of which brings its own requests of these lines.
    assert sum(by_id[move.source].line_length for move in made) <= max([0, *(by_id[m.target].line_room for m in made)])


@given(line_views(), st.data())
def test_ingresses_that_know_waits_a_little_differently_do_not_change_lines(engines, data):
    """Whatever one does, the other does not do the opposite of it."""
    error = st.floats(0, SAME_TIME_S * 0.99, allow_nan=False)
    others = [view._replace(longest_wait_s=view.longest_wait_s + data.draw(error)) for view in engines]
    there = {(move.source, move.target) for move in line_moves(engines)}
    assert not there & {(move.target, move.source) for move in line_moves(others)}


class Lines:
    """Full engines with lines, and ingresses whose requests stand in them, each in the order in which they came.

    Attributes:
        lines: of each engine, (when it came, whose it is) in order.
        moved: how often each came to another line, by (when it came, whose it is).
    """

    def __init__(self, lines: list[list[tuple[int, int]]], limit: int) -> None:
        self.lines, self.limit = [sorted(line) for line in lines], limit
        self.moved: Counter[tuple[int, int]] = Counter()
        self.now = 1 + max((one[0] for line in lines for one in line), default=0)

    def say(self, ingress: int) -> list[BalanceView]:
        return [
            BalanceView(
                str(number),
                sum(one[1] == ingress for one in line),
                line_length=len(line),
                longest_wait_s=float(self.now - line[0][0]) if line else 0.0,
                line_room=self.limit // 2 - len(line),
            )
            for number, line in enumerate(self.lines)
        ]

    def decide(self, ingress: int, words: list[BalanceView] | None = None) -> None:
        """By what is so now, or was."""
        for move in line_moves(self.say(ingress) if words is None else words):
            source, target = self.lines[int(move.source)], self.lines[int(move.target)]
            brought = [one for one in source if one[1] == ingress][: move.num_requests]
            source[:] = [one for one in source if one not in brought]
            target[:] = sorted(target + brought)
            self.moved.update(brought)
        assert all(len(line) <= self.limit for line in self.lines), "nobody is refused"


# Who came when, whose it is, and where it waits.
waiting = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 2), st.integers(0, 3)), max_size=24, unique_by=lambda one: one[0]
)
asks = st.tuples(st.just("decide"), st.integers(0, 2), st.booleans())
hears = st.tuples(st.just("hear"), st.integers(0, 2), st.just(False))
begins = st.tuples(st.just("begin"), st.integers(0, 3), st.just(False))
comes = st.tuples(st.just("come"), st.integers(0, 2), st.just(False))


def lines_of(who: list[tuple[int, int, int]]) -> list[list[tuple[int, int]]]:
    return [[(came_at, ingress) for came_at, ingress, at in who if at == engine] for engine in range(4)]


@given(waiting, st.sampled_from([8, 60]), st.lists(st.one_of(asks, hears), max_size=40))
def test_a_constant_load_comes_to_rest_in_one_line_and_nobody_changes_lines_twice(who, limit, events):
    fleet = Lines(lines_of(who), max(limit, *map(len, lines_of(who))))
    words = [fleet.say(ingress) for ingress in range(3)]
    for what, ingress, by_old_words in events:
        if what == "hear":
            words[ingress] = fleet.say(ingress)
        else:
            fleet.decide(ingress, words[ingress] if by_old_words else None)
    for _ in range(3):
        for ingress in range(3):
            fleet.decide(ingress)
    assert max(fleet.moved.values(), default=0) <= 1
    assert sorted(one for line in fleet.lines for one in line) == sorted(
        (came_at, ingress) for came_at, ingress, _ in who
    )
    assert all(not line_moves(fleet.say(ingress)) for ingress in range(3)), "nobody is asked for any more"
    if limit == 60:
        assert sum(bool(line) for line in fleet.lines) <= 1, "there is one line where there is room for it"


@given(waiting, st.lists(st.one_of(asks, begins, comes), max_size=60))
def test_nobody_changes_lines_again_before_somebody_has_begun_who_came_sooner(who, events):
    fleet, begun = Lines(lines_of(who), 1000), []
    since: dict[tuple[int, int], int] = {}  # how many had begun when it changed lines last
    for what, which, _ in events:
        fleet.now += 1
        if what == "begin" and fleet.lines[which]:
            begun.append(fleet.lines[which].pop(0))
        elif what == "come":
            fleet.lines[fleet.now % 4].append((fleet.now, which))
        elif what == "decide":
            before = fleet.moved.copy()
            fleet.decide(which)
            for one in fleet.moved - before:
                sooner = [other for other in begun[since.get(one, 0) :] if other < one]
                assert one not in since or sooner
                since[one] = len(begun)


def test_those_who_wait_come_into_one_line():
    old = BalanceView("old", 3, line_length=5, longest_wait_s=9.0, line_room=20)
    young = BalanceView("young", 4, line_length=6, longest_wait_s=2.0, line_room=20)
    as_old = BalanceView("as old", 1, line_length=1, longest_wait_s=9.0 - SAME_TIME_S, line_room=20)
    assert line_moves([young, old, as_old]) == [Move("young", "old", 4)]
    assert line_moves([young, old._replace(line_room=5)]) == [], "one that has room for a part of it gets nothing"
    assert line_moves([young, old._replace(open_places=1)]) == [], "who waits there is about to begin"
    assert line_moves([young._replace(num_movable=0), old]) == [], "others move theirs"
    assert line_moves([young]) == []


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
