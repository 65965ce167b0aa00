"""The number of ingresses: bounds, monotone in use, calm on constant load, hold on what is missing or stale."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.ingresses import (
    RULE,
    EngineHost,
    IngressInputs,
    IngressState,
    IngressUse,
    decide,
    most_ingresses,
)

shares = st.floats(0, 1.5)
counts = st.integers(-3, 40)
uses = st.builds(IngressUse, st.floats(), st.none() | counts, st.floats())
odd = st.builds(IngressInputs, st.floats(0, 1e6), st.lists(uses, max_size=5).map(tuple), counts, counts)
loads = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 16)), max_size=4).map(tuple)
states = st.builds(IngressState, st.none() | st.floats(0, 1e6), loads)


def told(now: float, cpu: list[float], target: int | None = None, most: int | None = 16) -> IngressInputs:
    return IngressInputs(now, tuple(IngressUse(share, most, 1.0) for share in cpu), len(cpu), target or len(cpu))


@given(odd, states)
def test_there_is_always_one_and_more_only_where_there_are_cores(inputs, state):
    decision = decide(inputs, state)
    current = max(1, inputs.current_target if inputs.current_target > 0 else inputs.num_running)
    assert decision.target >= 1
    if decision.target > current:
        assert decision.target <= RULE.most
        assert decision.target <= min(use.most for use in inputs.uses if use.most is not None and use.age_s >= 0)
        assert decision.reason.startswith("up")
    assert (decision.target < current) == decision.reason.startswith("down")


@given(st.lists(shares, min_size=1, max_size=6), st.data(), st.integers(1, 16))
def test_more_use_never_means_fewer(before, data, most):
    more = [data.draw(st.floats(share, 2.0)) for share in before]
    state = IngressState(0.0, ())
    less_wanted = decide(told(1e4, before, most=most), state).target
    assert decide(told(1e4, more, most=most), state).target >= less_wanted


@given(st.floats(0, 20), st.integers(1, 16), st.integers(1, 16), st.lists(st.floats(0.2, 1), min_size=16, max_size=16))
def test_a_constant_load_is_left_alone_once_it_has_its_ingresses(load, begin, most, weights):
    state, count, seen = IngressState(), begin, []
    for second in range(0, 2000, 10):
        parts = weights[:count]
        spread = [min(1.0, load * part / sum(parts)) for part in parts]
        count, _, state = decide(told(float(second), spread, most=most), state)
        seen.append(count)
    changes = [b - a for a, b in itertools.pairwise(seen) if a != b]
    assert all(change > 0 for change in changes) or all(change < 0 for change in changes), "never to and fro"
    assert len(set(seen[100:])) == 1


@given(states, st.integers(1, 6), st.integers(1, 6), st.sampled_from([math.nan, -1.0, 100.0]))
def test_what_is_missing_or_stale_holds(state, running, target, age_s):
    told_by_some = tuple(IngressUse(1.0, 16, 1.0) for _ in range(running - 1))
    missing = IngressInputs(5.0, told_by_some, running, target)
    stale = missing._replace(uses=(*told_by_some, IngressUse(0.0, 16, age_s)))
    for inputs in (missing, stale):
        decision = decide(inputs, state)
        assert decision.target == target and decision.reason.startswith("hold")
        assert decision.state == IngressState(), "the while that must have been quiet begins anew"


def test_one_that_is_full_gets_another_where_there_are_cores_for_it():
    assert decide(told(0.0, [0.95]), IngressState()).target == 2
    assert decide(told(0.0, [RULE.full - 0.01]), IngressState()).target == 1
    assert decide(told(0.0, [0.95], most=1), IngressState()).target == 1
    assert decide(told(0.0, [0.95], most=None), IngressState()).target == 1, "no engine is known"
    assert decide(told(0.0, [0.95], target=2), IngressState()).target == 2, "one that starts is waited for"
    assert decide(told(0.0, [0.95, 0.05]), IngressState()).target == 2, "the idle one gets what comes"
    assert decide(told(0.0, [1.0, 1.0]), IngressState()).target == 4


def test_one_leaves_when_the_rest_had_room_for_all_for_a_while():
    state, left = IngressState(), None
    for second in range(0, 400, 2):
        use = 0.4 if second < 100 else 0.1
        target, _, state = decide(told(float(second), [use, use]), state)
        left = second if target == 1 and left is None else left
    # The last seconds with load are one value, of the time when it began.
    assert left is not None and 95 + RULE.hold_s <= left < 105 + RULE.hold_s


def test_engines_and_proxies_keep_their_cores():
    assert most_ingresses([]) is None
    assert most_ingresses([EngineHost(2, 1, "a")]) == 1, "two cores carry no second one"
    assert most_ingresses([EngineHost(16, 16, "a")]) == 1, "an engine that computes on all cores needs them"
    assert most_ingresses([EngineHost(16, 1, "a")] * 4) == 6
    assert most_ingresses([EngineHost(32, 1, "a"), EngineHost(8, 1, "b"), EngineHost(8, 1, "b")]) == 15 + 3
    metadata = EngineHost(8, 3).as_metadata()
    assert EngineHost.of(metadata, "n") == EngineHost(8, 3, "n")
    assert EngineHost.of({}, "n") is None and EngineHost.of({**metadata, "num_cores": "x"}, "n") is None
