"""Routing policies: to which engine a request goes.

A policy is a pure function of the request, the engines and a source of randomness. It returns ranks of engines, the best first.
An engine that does not answer or is full leaves the request to the next rank. Of a rank with several, which no policy here makes,
the least busy gets the request, as the queue lengths say that Serve has or asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from cluster.routing.candidates import EngineCandidate, RequestView, candidates

Ranks = Sequence[Sequence[EngineCandidate]]
Policy = Callable[[RequestView, Sequence[EngineCandidate], random.Random], Ranks]


def power_of_two(request: RequestView, engines: Sequence[EngineCandidate], rng: random.Random) -> Ranks:
    """Two engines at random, of which the one whose requests have fewer tokens gets the request, by their weight; then the other.

    Mitzenmacher, The power of two choices in randomized load balancing, 2001.
    """
    able = candidates(request, engines)
    # Two that weigh the same stay in their order, which is random.
    return [[engine] for engine in sorted(rng.sample(able, min(2, len(able))), key=_weight)]


def least_tokens(request: RequestView, engines: Sequence[EngineCandidate], rng: random.Random) -> Ranks:
    """The engine whose requests have the fewest tokens, running and waiting, by their weight; then the next. Ties are broken at
    random."""
    able = candidates(request, engines)
    return [[engine] for engine in sorted(able, key=lambda engine: (engine.token_weight, rng.random()))]


def _weight(engine: EngineCandidate) -> float:
    return engine.token_weight


# By the names that the setting ``routing_policy`` has for them.
POLICIES: Mapping[str, Policy] = {"power_of_two": power_of_two, "least_tokens": least_tokens}


def first_choice(ranks: Ranks) -> EngineCandidate:
    """Of the first rank the engine with the fewest tokens, where nobody is asked how busy it is. There is a rank."""
    return min(ranks[0], key=_weight)


def choose(
    policy: Policy,
    request: RequestView,
    engines: Sequence[EngineCandidate],
    rng: random.Random,
    failed: Callable[[Exception], None],
) -> Ranks:
    """What ``policy`` says; if it raises, or names no engine or one that is not there, ``failed`` gets the error and the power of
    two decides: a request must not wait for a policy that will never answer."""
    try:
        ranks = policy(request, engines, rng)
        named = [engine for rank in ranks for engine in rank]
        if engines and not named:
            raise LookupError("the policy chose no engine")
        if not {engine.engine_id for engine in named} <= {engine.engine_id for engine in engines}:
            raise LookupError("the policy chose an engine that is not there")
        return ranks
    except Exception as error:
        failed(error)
        return power_of_two(request, engines, rng)
