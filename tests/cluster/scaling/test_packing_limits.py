"""Room of an ingress: bounds, monotone, where it comes to rest; and how many ingresses there are when the first are filled."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scaling.ingresses import RULE, IngressInputs, IngressState, IngressUse, decide
from cluster.scaling.packing import PACKING, next_limit

limits = st.floats(1, 1e4)
opens = st.floats(0, 1e4)
shares = st.floats(0, 4)


@given(limits, opens, shares)
def test_it_doubles_at_most_and_takes_away_only_what_does_not_fit(limit, num_open, share):
    after = next_limit(limit, num_open, share)
    assert after <= max(2 * limit, PACKING.first)
    assert after >= 1
    assert after >= min(limit * 0.9, PACKING.aim * num_open / share if share else limit)


@given(limits, opens, shares, st.floats(1, 4))
def test_the_same_requests_for_more_cores_never_make_more_room(limit, num_open, share, times):
    told = max(share, PACKING.telling)
    assert next_limit(limit, num_open, told * times) <= next_limit(limit, num_open, told)


@given(limits, st.floats(1, 1e4), shares, st.floats(1, 4))
def test_more_requests_for_the_same_cores_make_no_less_but_for_what_is_forgotten(limit, num_open, share, times):
    assert next_limit(limit, num_open * times, share) >= 0.9 * next_limit(limit, num_open, share)


@given(limits, st.floats(0, 1e4), st.floats(0, PACKING.telling, exclude_max=True))
def test_what_the_process_takes_by_itself_takes_no_room_away(limit, num_open, share):
    assert next_limit(limit, num_open, share) >= max(0.9 * limit, PACKING.first)


@given(limits, st.floats(0, 0.99), shares)
def test_what_an_idle_process_takes_says_nothing_of_requests(limit, num_open, share):
    assert next_limit(limit, num_open, share) >= 0.9 * limit


def test_what_was_learned_of_many_is_forgotten_where_few_are():
    limit = 2000.0
    for _ in range(60):
        limit = next_limit(limit, 20, 0.05)
    assert 2 * 20 <= limit <= 4 * 20
    assert next_limit(2000, 0, 0.01, lasted_s=600) == PACKING.first, "after ten minutes of nothing"


@given(limits, shares, st.data())
def test_it_does_not_grow_by_requests_that_nobody_has_seen(limit, share, data):
    few = data.draw(st.floats(0, limit / 2, exclude_max=True))
    assert next_limit(limit, few, share) <= max(limit, PACKING.first)


@pytest.mark.parametrize("cost", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("begin", [1.0, 16.0, 5000.0])
def test_where_more_come_than_fit_it_comes_to_rest_at_the_aim(cost, begin):
    limit = begin
    for _ in range(40):
        limit = next_limit(limit, limit, min(1.0, cost * limit))
    assert limit == pytest.approx(PACKING.aim / cost, rel=0.01)


@pytest.mark.parametrize("core", [0.3, 0.5])
def test_one_whose_core_others_use_is_full_when_its_part_is(core):
    cost, seen = 0.02, []
    limit = PACKING.first
    for _ in range(100):
        wants = cost * limit
        is_full = wants > core
        limit = next_limit(limit, limit, core + (1 - core) if is_full else wants)
        seen.append(limit)
    assert max(seen[20:]) <= 2 * core / cost, "where it knew of the CPU time alone it would double for ever"
    assert min(seen[20:]) >= 0.5 * core / cost


class Simulated:
    """Ingresses behind one proxy. A request is open for a while and takes a part of a core meanwhile; others come as it ends.

    Attributes:
        counts: of ingresses, by second.
        shares: cores that each of them used, by second.
    """

    def __init__(self, packs: bool, seed: int, cost: float) -> None:
        self._packs, self._random, self._cost = packs, random.Random(seed), cost
        self._count = 1
        self._limits: list[float] = []
        self._num_open: list[int] = []
        self._costs: list[float] = []
        self._ends: list[tuple[float, int, int, float]] = []
        self._numbers = itertools.count()
        self.counts: list[int] = []
        self.shares: list[list[float]] = []

    def run(self, load: Callable[[int], float], seconds: int) -> Simulated:
        """``load(second)``: cores that the requests of all clients want together."""
        state = IngressState()
        for second in range(seconds):
            # Those that leave end what they have; others begin with nothing known of them.
            while len(self._limits) < self._count:
                self._limits.append(PACKING.first)
                self._num_open.append(0)
                self._costs.append(0.0)
            opened, used = self._second(float(second), load(second))
            self._limits = [next_limit(*seen) for seen in zip(self._limits, opened, used)]
            self.shares.append(used[: self._count])
            if second % 10 == 9:
                uses = tuple(IngressUse(share, 16, 0.0) for share in self._lately())
                self._count, _, state = decide(IngressInputs(second, uses, self._count, self._count), state)
            self.counts.append(self._count)
        return self

    def _second(self, now: float, load: float) -> tuple[list[float], list[float]]:
        opened, used = np.zeros(len(self._costs)), np.zeros(len(self._costs))
        for tenth in range(10):
            self._until(now + tenth / 10, load)
            opened += np.array(self._num_open) / 10
            used += np.minimum(1.0, 0.01 + np.array(self._costs)) / 10
        return list(opened), list(used)

    def _until(self, now: float, load: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, _, place, cost = heapq.heappop(self._ends)
            self._num_open[place] -= 1
            self._costs[place] -= cost
        while sum(self._costs) < load:
            place, cost = self._place(), self._cost * self._random.uniform(0.2, 1.8)
            self._num_open[place] += 1
            self._costs[place] += cost
            ends = now + self._random.uniform(2, 8)
            heapq.heappush(self._ends, (ends, next(self._numbers), place, cost))

    def _place(self) -> int:
        places = range(self._count)
        with_room = [place for place in places if self._num_open[place] < int(self._limits[place])]
        if self._packs and with_room:
            return with_room[0]
        return min(places, key=self._num_open.__getitem__)

    def _lately(self) -> list[float]:
        known = ([past[k] for past in self.shares[-10:] if len(past) > k] for k in range(self._count))
        return [sum(shares) / len(shares) for shares in known]


def simulated(load: Callable[[int], float], seconds: int, seed: int, cost: float) -> tuple[Simulated, Simulated]:
    """The first ones filled, and all alike."""
    return Simulated(True, seed, cost).run(load, seconds), Simulated(False, seed, cost).run(load, seconds)


@pytest.mark.parametrize("cost", [0.002, 0.01])
def test_a_load_that_grows_gets_another_ingress_when_it_got_one_before(cost):
    packed, alike = simulated(lambda second: second / 200, 700, 1, cost)
    assert min(packed.counts[-1], alike.counts[-1]) >= 5
    assert np.max(np.abs(np.array(packed.counts) - np.array(alike.counts))) <= 1


@given(st.floats(0.1, 3.0), st.sampled_from([0.002, 0.01, 0.05]), st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_load_that_stays_has_as_many_as_before_and_fills_the_first(load, cost, seed):
    packed, alike = simulated(lambda second: load, 300, seed, cost)
    assert len(set(packed.counts[100:])) == 1, "never to and fro"
    assert abs(packed.counts[-1] - alike.counts[-1]) <= 1
    busiest, *others = np.mean(packed.shares[-100:], axis=0)
    assert busiest < RULE.full
    assert busiest > min(load, PACKING.aim) - 0.1
    assert all(before >= after - 0.05 for before, after in itertools.pairwise([busiest, *others]))


def test_a_load_that_falls_leaves_as_few_as_before():
    packed, alike = simulated(lambda second: 3.0 if second < 200 else 0.5, 900, 1, 0.01)
    assert packed.counts == alike.counts
    assert packed.counts[-1] == 2 < max(packed.counts)
    first, second = np.mean(packed.shares[-100:], axis=0)
    assert first == pytest.approx(0.5, abs=0.05)
    assert second < 0.02, "what is left of it"
