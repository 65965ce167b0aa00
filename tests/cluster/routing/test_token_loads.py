"""Tokens of an engine between two announcements."""

from __future__ import annotations

import random
import threading
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.candidates import EngineCandidate, RequestView
from cluster.routing.policies import least_tokens
from cluster.routing.token_loads import TokenLoads


def test_what_was_sent_counts_until_an_announcement_counts_it():
    loads = TokenLoads()
    loads.announced("a", 100)
    for name, num_tokens in (("first", 7), ("second", 5)):
        loads.open(name)
        loads.sent(name, "a", num_tokens)
    assert loads.of("a") == 112
    loads.announced("a", 90)
    assert loads.of("a") == 102  # the engine had neither when it spoke
    loads.taken("first")
    assert loads.of("a") == 102
    loads.announced("a", 97)
    assert loads.of("a") == 102
    loads.taken("second")
    loads.announced("a", 102)
    assert loads.of("a") == 102


def test_a_request_that_is_over_or_sent_elsewhere_counts_no_more():
    loads = TokenLoads()
    loads.sent("not open", "a", 9)
    assert loads.of("a") == 0
    loads.open("r")
    loads.sent("r", "a", 9)
    loads.sent("r", "a", 9)
    assert (loads.of("a"), loads.of("b")) == (9, 0)
    loads.sent("r", "b", 9)
    assert (loads.of("a"), loads.of("b")) == (0, 9)
    loads.open("r")
    assert loads.of("b") == 0
    loads.sent("r", "b", 9)
    loads.taken("r")
    loads.close("r")
    assert loads.of("b") == 0
    loads.announced("b", 4)
    assert loads.of("b") == 4


def test_engines_that_are_gone_are_forgotten_and_their_requests_may_end():
    loads = TokenLoads()
    loads.announced("a", 3)
    loads.open("r")
    loads.sent("r", "a", 9)
    loads.keep(["b"])
    loads.taken("r")
    loads.close("r")
    assert loads.of("a") == 0
    assert not loads._engines
    assert not loads._engine_of


@given(st.lists(st.integers(1, 50), min_size=8, max_size=40), st.integers(0, 99))
def test_a_burst_between_two_announcements_is_spread(sizes, seed):
    loads, rng = TokenLoads(), random.Random(seed)
    for number, num_tokens in enumerate(sizes):
        engines = [EngineCandidate(name, num_tokens=loads.of(name)) for name in "abc"]
        loads.open(str(number))
        loads.sent(str(number), least_tokens(RequestView(), engines, rng)[0][0].engine_id, num_tokens)
    spread = [loads.of(name) for name in "abc"]
    assert max(spread) - min(spread) <= max(sizes)


def test_two_threads_agree():
    loads, ends = TokenLoads(), Counter()

    def use(name: str) -> None:
        for number in range(3000):
            request_id = f"{name}{number % 7}"
            loads.open(request_id)
            loads.sent(request_id, "a", 1)
            ends[name] = max(ends[name], loads.of("a"))
            loads.taken(request_id)
            loads.announced("b", number)
            loads.close(request_id)

    threads = [threading.Thread(target=use, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads.of("a") == 0
    assert set(ends) == set("xy")
    assert max(ends.values()) <= 2
