"""What holds for every routing policy, and for each of them."""

from __future__ import annotations

import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import LLMConfig
from cluster.routing.candidates import EngineCandidate, RequestView, candidates
from cluster.routing.policies import POLICIES, choose, least_tokens, power_of_two

ENGINES = st.lists(
    st.builds(
        EngineCandidate,
        engine_id=st.sampled_from("abcdefgh"),
        fingerprint=st.sampled_from(["f", "g"]),
        is_avoided=st.booleans(),
        is_near=st.booleans(),
        token_weight=st.integers(0, 5),
    ),
    unique_by=lambda engine: engine.engine_id,
    max_size=6,
)
REQUESTS = st.builds(RequestView, st.sampled_from(["", "f", "g", "nobody's"]))
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def test_the_setting_has_the_names_of_the_policies():
    assert set(get_args(LLMConfig.model_fields["routing_policy"].annotation)) == set(POLICIES)


@every_policy
@given(request=REQUESTS, engines=ENGINES, seed=st.integers(0, 99))
def test_an_avoided_engine_is_chosen_only_where_all_that_may_answer_are_avoided(policy, request, engines, seed):
    chosen = policy(request, engines, random.Random(seed))
    able = [engine for engine in engines if request.fingerprint and engine.fingerprint == request.fingerprint]
    able = able or [engine for engine in engines if engine.is_near] or engines
    if any(not engine.is_avoided for engine in able):
        assert not any(engine.is_avoided for engine in chosen)


@every_policy
@given(request=REQUESTS, engines=ENGINES, seed=st.integers(0, 99))
def test_an_answer_that_has_begun_goes_to_engines_with_its_fingerprint(policy, request, engines, seed):
    chosen = policy(request, engines, random.Random(seed))
    assert set(chosen) <= set(engines)
    assert len(set(chosen)) == len(chosen)
    if any(engine.fingerprint == request.fingerprint for engine in engines):
        assert {engine.fingerprint for engine in chosen} == {request.fingerprint}
    else:
        assert bool(chosen) == bool(engines)
        assert all(engine.is_near for engine in chosen) or not any(engine.is_near for engine in engines)


@every_policy
@given(request=REQUESTS, engines=ENGINES, seed=st.integers(0, 99))
def test_the_same_randomness_gives_the_same_choice_and_the_engines_stay_as_they_are(policy, request, engines, seed):
    before = list(engines)
    assert policy(request, engines, random.Random(seed)) == policy(request, engines, random.Random(seed))
    assert engines == before


@every_policy
def test_every_engine_that_is_as_good_as_another_is_chosen_as_often(policy):
    engines, rng = [EngineCandidate(name) for name in "abc"], random.Random(1)
    first = Counter(policy(RequestView(), engines, rng)[0].engine_id for _ in range(3000))
    assert all(900 < first[name] < 1100 for name in "abc")


@given(request=REQUESTS, engines=ENGINES, seed=st.integers(0, 99))
def test_the_power_of_two_tries_the_lighter_of_two_and_then_the_other(request, engines, seed):
    able = candidates(request, engines)
    order = power_of_two(request, engines, random.Random(seed))
    assert len(order) == min(2, len(able))
    weights = [engine.token_weight for engine in order]
    assert weights == sorted(weights)


@given(request=REQUESTS, engines=ENGINES, seed=st.integers(0, 99))
def test_least_tokens_tries_the_engines_one_by_one_from_the_idlest_on(request, engines, seed):
    loads = [engine.token_weight for engine in least_tokens(request, engines, random.Random(seed))]
    assert loads == sorted(engine.token_weight for engine in candidates(request, engines))


def broken(request, engines, rng):
    raise ZeroDivisionError


FAULTS = {
    "raises": (broken, ZeroDivisionError),
    "returns nothing": (lambda *_: None, TypeError),
    "names no engine": (lambda *_: [], LookupError),
    "names another engine": (lambda *_: [EngineCandidate("elsewhere")], LookupError),
    "names what is no engine": (lambda *_: ["a"], AttributeError),
}


@pytest.mark.parametrize("fault", FAULTS)
@given(request=REQUESTS, engines=ENGINES.filter(bool), seed=st.integers(0, 99))
def test_where_a_policy_fails_the_power_of_two_decides(fault, request, engines, seed):
    policy, kind = FAULTS[fault]
    errors: list[Exception] = []
    order = choose(policy, request, engines, random.Random(seed), errors.append)
    assert order == power_of_two(request, engines, random.Random(seed))
    assert [type(error) for error in errors] == [kind]


@every_policy
@given(request=REQUESTS, engines=ENGINES)
def test_a_policy_that_works_is_heard(policy, request, engines):
    errors: list[Exception] = []
    chosen = choose(policy, request, engines, random.Random(0), errors.append)
    assert chosen == policy(request, engines, random.Random(0))
    assert errors == []
