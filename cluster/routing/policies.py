"""Routing policies: to which engine a request goes.

A policy is a pure function of the request, the engines and a source of randomness. It returns engines in order, the best first.
One that does not answer or is full leaves the request to the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from cluster.routing.candidates import EngineCandidate, RequestView, candidates

Policy = Callable[[RequestView, Sequence[EngineCandidate], random.Random], list[EngineCandidate]]


def power_of_two(request: RequestView, engines: Sequence[EngineCandidate], rng: random.Random) -> list[EngineCandidate]:
    """Two engines at random, of which the one whose requests have fewer tokens gets the request, by their weight; then the other.

    Mitzenmacher, The power of two choices in randomized load balancing, 2001.
    """
    able = candidates(request, engines)
    # Two that weigh the same stay in their order, which is random.
    return sorted(rng.sample(able, min(2, len(able))), key=lambda engine: engine.token_weight)


def least_tokens(request: RequestView, engines: Sequence[EngineCandidate], rng: random.Random) -> list[EngineCandidate]:
    """The engine whose requests have the fewest tokens, running and waiting, by their weight; then the next. Ties are broken at
    random."""
    able = candidates(request, engines)
    return sorted(able, key=lambda engine: (engine.token_weight, rng.random()))


# By the names that the setting ``routing_policy`` has for them.
POLICIES: Mapping[str, Policy] = {"power_of_two": power_of_two, "least_tokens": least_tokens}


def choose(
    policy: Policy,
    request: RequestView,
    engines: Sequence[EngineCandidate],
    rng: random.Random,
    failed: Callable[[Exception], None],
) -> list[EngineCandidate]:
    """What ``policy`` says; if it raises, or names no engine or one that is not there, ``failed`` gets the error and the power of
    two decides: a request must not wait for a policy that will never answer."""
    try:
        order = list(policy(request, engines, rng))
        if engines and not order:
            raise LookupError("the policy chose no engine")
        if not {engine.engine_id for engine in order} <= {engine.engine_id for engine in engines}:
            raise LookupError("the policy chose an engine that is not there")
        return order
    except Exception as error:
        failed(error)
        return power_of_two(request, engines, rng)
