"""Arrivals in a simulation go where the router that serves would send them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.routing.candidates import EngineCandidate, RequestView
from cluster.routing.lines import Line, open_to_arrival
from cluster.routing.policies import POLICIES
from cluster.routing.token_weight import token_weight
from cluster.scaling.balance import BalanceView
from deployments.simulator.requests.router import OpenEngines, Router
from deployments.simulator.setup import SimulatorSettings

SETTINGS = SimulatorSettings()


@dataclass
class Known:
    """An engine that is told its room and its line."""

    name: int
    places: int
    line: int
    num_tokens: int = 0
    uncomputed_tokens: int = 0
    num_sent: int = 0
    has_moved: bool = False  # who waits there was moved there, and moves no more

    @property
    def open_places(self) -> int:
        return self.places - self.num_sent

    @property
    def wait_s(self) -> float:
        return 1.0 + self.name % 3 if self.line else 0.0

    @property
    def is_crowded(self) -> bool:
        return self.has_moved or self.line > 0 or self.places <= self.num_sent

    def balance_view(self, now: float) -> BalanceView:
        return BalanceView(str(self.name), self.line, self.wait_s, self.open_places, self.line, self.wait_s)


FLEETS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 1, 4])), min_size=1, max_size=7)


def fleet(rooms: list[tuple[int, int]]) -> list[Known]:
    return [Known(i, places, line, num_tokens=i % 3, has_moved=i % 2 > 0) for i, (places, line) in enumerate(rooms)]


def named_open(engines: list[Known]) -> set[int]:
    lines = [
        Line(str(e.name), open_places=e.places, num_sent=e.num_sent, length=e.line, free=10**6, waited_s=e.wait_s)
        for e in engines
    ]
    return set(map(int, open_to_arrival(lines)))


@settings(max_examples=300, deadline=None)
@given(FLEETS, st.integers(0, 99))
def test_what_is_open_follows_the_lines_after_every_arrival(rooms, seed):
    engines, rng = fleet(rooms), random.Random(seed)
    found = OpenEngines(engines, engines, 0.0)
    for _ in range(15):
        assert {engine.name for engine in found.engines} == named_open(engines)
        assert all((engine in found) == (engine in found.engines) for engine in engines)
        chosen = rng.choice(found.engines)
        chosen.num_sent += 1
        found.sent(chosen)


def sent_to(rooms: list[tuple[int, int]], policy: str, seed: int, count: int) -> list[int]:
    engines, went = fleet(rooms), []

    def submit(engine: Known, _: int) -> None:
        engine.num_sent += 1
        went.append(engine.name)

    router = Router(replace(SETTINGS, routing_policy=policy, seed=seed))
    router.place(0.0, engines, engines, [], range(count), lambda request: 10 + request, submit)
    return went


def served(rooms: list[tuple[int, int]], policy: str, seed: int, count: int) -> list[int]:
    """By the policy itself, over all engines."""
    engines, rng, went = fleet(rooms), random.Random(seed), []
    sent = dict.fromkeys(range(len(rooms)), 0.0)
    for request in range(count):
        open_to = named_open(engines)
        views = [
            EngineCandidate(str(e.name), is_open=e.name in open_to, token_weight=e.num_tokens + sent[e.name])
            for e in engines
        ]
        chosen = int(POLICIES[policy](RequestView(), views, rng)[0].engine_id)
        engines[chosen].num_sent += 1
        sent[chosen] += token_weight(10 + request, 10 + request)
        went.append(chosen)
    return went


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "rooms", [[(5, 0)] * 4, [(1, 0), (2, 0), (0, 0)], [(3, 0), (0, 1), (2, 0)], [(0, 2), (1, 0), (0, 1)]]
)
def test_the_short_list_leads_to_the_choices_of_the_policy(policy, rooms):
    ways = [Counter(tuple(way(rooms, policy, seed, 3)) for seed in range(1500)) for way in (sent_to, served)]
    for way in ways[0].keys() | ways[1].keys():
        assert abs(ways[0][way] - ways[1][way]) < 6 * max(ways[0][way], ways[1][way], 8) ** 0.5


def test_who_was_at_an_engine_before_stands_in_no_line():
    engines = [Known(0, 0, 3), Known(1, 0, 0)]
    went = []
    router = Router(SETTINGS)
    router.place(0.0, engines, engines, range(40), range(5), lambda _: 10, lambda engine, _: went.append(engine.name))
    assert set(went[:40]) == {0, 1} and set(went[40:]) == {0}


def test_who_returns_stands_in_no_line_though_the_same_object_names_who_arrives():
    engines, same, went = [Known(0, 0, 3), Known(1, 0, 0)], range(40), []
    Router(SETTINGS).place(0.0, engines, engines, same, same, lambda _: 10, lambda engine, _: went.append(engine.name))
    assert set(went[1:40]) == {0, 1} and set(went[40:]) == {0}


def test_a_policy_that_is_none_is_named():
    with pytest.raises(ValueError, match="routing_policy: got 'any', allowed: power_of_two, least_tokens"):
        replace(SETTINGS, routing_policy="any")
