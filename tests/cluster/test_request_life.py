"""The transition table, edge by edge."""

from __future__ import annotations

import itertools

import pytest

from cluster.request import TRANSITIONS, IllegalTransitionError, RequestState, check_transition

S = RequestState
LEGAL = {
    (S.WAITING, S.RUNNING),  # admitted
    (S.WAITING, S.FINISHED),  # aborted in the queue
    (S.RUNNING, S.PREEMPTING),  # chosen as a victim
    (S.RUNNING, S.RETIRING),  # aborted while it runs
    (S.RUNNING, S.FINISHED),  # stopped
    (S.PREEMPTING, S.WAITING),  # its marker was saved
    (S.PREEMPTING, S.RETIRING),  # finished in flight, or aborted, after it was chosen
    (S.RETIRING, S.FINISHED),  # its marker was saved
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(RequestState, repeat=2)))
def test_every_pair_of_states(old, new):
    if (old, new) in LEGAL:
        assert check_transition(old, new, "r") is new
    else:
        with pytest.raises(IllegalTransitionError, match=f"r: {old.value} -> {new.value}"):
            check_transition(old, new, "r")


def test_every_state_is_in_the_table_and_leads_to_the_end():
    assert set(TRANSITIONS) == set(RequestState)
    reaches_end = {S.FINISHED}
    for _ in RequestState:
        reaches_end |= {state for state, targets in TRANSITIONS.items() if targets & reaches_end}
    assert reaches_end == set(RequestState)
