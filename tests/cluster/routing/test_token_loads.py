"""Tokens of an engine between two announcements."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
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
    assert loads.of("a") == 100 + 10 * 12
    loads.announced("a", 90)
    assert loads.of("a") == 90 + 10 * 12  # the engine had neither when it spoke
    loads.taken("first")
    assert loads.of("a") == 90 + 10 * 12
    loads.announced("a", 97, 7)
    assert loads.of("a") == 90 + 10 * 12  # the first waits
    loads.taken("second")
    loads.announced("a", 102, 5)
    assert loads.of("a") == 97 + 10 * 5
    loads.announced("a", 103)
    assert loads.of("a") == 103


def test_a_request_that_is_over_or_sent_elsewhere_counts_no_more():
    loads = TokenLoads()
    loads.sent("not open", "a", 9)
    assert loads.of("a") == 0
    loads.open("r")
    loads.sent("r", "a", 9)
    loads.sent("r", "a", 9)
    assert (loads.of("a"), loads.of("b")) == (90, 0)
    loads.sent("r", "b", 9)
    assert (loads.of("a"), loads.of("b")) == (0, 90)
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
        engines = [EngineCandidate(name, token_weight=loads.of(name)) for name in "abc"]
        loads.open(str(number))
        loads.sent(str(number), least_tokens(RequestView(), engines, rng)[0].engine_id, num_tokens)
    spread = [loads.of(name) for name in "abc"]
    assert max(spread) - min(spread) <= 10 * max(sizes)


@pytest.mark.parametrize("num_ingresses", [1, 2, 8])
def test_shares_stay_even_however_many_ingresses_share_the_engines(num_ingresses):
    """Each knows of the others' requests only what engines announce every quarter of a second."""
    rng = random.Random(num_ingresses)
    engines: list[dict[str, tuple[TokenLoads, int, int, int]]] = [{} for _ in range(4)]
    ingresses = [TokenLoads() for _ in range(num_ingresses)]
    on_their_way, held = [], Counter()
    for step in range(4000):  # of 10 ms, in each of which every request has a token
        for _ in range(4):
            if rng.random() < 0.1:
                loads, request = rng.choice(ingresses), f"{step} {rng.random()}"
                prompt, answer = rng.choice([20, 100, 1000]), rng.choice([50, 200, 400])
                views = [EngineCandidate(str(e), token_weight=loads.of(str(e))) for e in range(4)]
                chosen = least_tokens(RequestView(), views, rng)[0].engine_id
                loads.open(request)
                loads.sent(request, chosen, prompt)
                on_their_way.append((step + 2, loads, request, int(chosen), prompt, answer))
        while on_their_way and on_their_way[0][0] <= step:
            _, loads, request, engine, prompt, answer = on_their_way.pop(0)
            engines[engine][request] = loads, prompt, step + answer, step
            loads.taken(request)
        for engine, running in enumerate(engines):
            for request in [request for request, (_, _, end, _) in running.items() if end <= step]:
                running.pop(request)[0].close(request)
            tokens = sum(prompt + step - begun for _, prompt, _, begun in running.values())
            held[engine] += tokens
            if step % 25 == 6 * engine:
                for loads in ingresses:
                    loads.announced(str(engine), tokens)
    assert max(held.values()) < 1.1 * min(held.values())


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
    assert max(ends.values()) <= 2 * 10
