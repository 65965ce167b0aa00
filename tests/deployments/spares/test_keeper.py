"""How many spares a keeper asks for: never more than are wanted, and not beside an engine that has just taken one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.spares import keeper
from deployments.spares.keeper import _Kind
from deployments.spares.roster import Spare

WANTED = 2


@given(st.lists(st.tuples(st.sampled_from(["come", "adopt", "lose", "wait"]), st.floats(0.25, 20.0))))
def test_there_are_never_more_than_are_wanted_and_in_the_end_as_many(events):
    kind, now, alive, spares, next_pid, asked = _Kind(), 100.0, set(), [], 1, 0
    original = keeper.has_ended
    keeper.has_ended = lambda pid: pid not in alive
    try:
        for event, seconds in [*events, *[("come", 70.0)] * (2 * WANTED)]:
            now += seconds
            if event == "come" and asked:
                asked -= 1
                alive.add(next_pid)
                spares.append(Spare(next_pid, True))
                next_pid += 1
            elif event == "adopt" and spares:
                spares.pop(0)
            elif event == "lose" and spares:
                alive.discard(spares.pop(0).pid)
            kind.look(spares, now)
            asked = min(asked, len(kind.coming))  # those that did not come within their time
            missing = kind.missing(WANTED, now)
            kind.coming += [now] * missing
            asked += missing
            assert len(spares) + len(kind.coming) <= WANTED
        assert len(spares) == WANTED
    finally:
        keeper.has_ended = original


def test_a_place_that_an_engine_took_stays_empty_while_it_starts_and_one_of_a_dead_process_is_filled(monkeypatch):
    monkeypatch.setattr(keeper, "has_ended", lambda pid: pid == 2)
    kind = _Kind()
    kind.look([Spare(1, True)], 0.0)
    kind.look([], 10.0)
    assert (kind.adopted, kind.lost, kind.missing(1, 11.0), kind.missing(1, 16.0)) == (1, 0, 0, 1)
    kind.look([Spare(3, False)], 18.0)
    kind.look([Spare(2, True)], 20.0)
    kind.look([], 30.0)
    assert (kind.adopted, kind.lost, kind.missing(1, 31.5)) == (1, 1, 1), "what was never ready was no spare"
