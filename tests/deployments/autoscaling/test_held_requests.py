"""Ingresses that share what may be held while there is no engine."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api_errors import ApiError
from cluster.outputs import EngineLoad
from cluster.scaling.hold import HoldShare, hold_share
from deployments.autoscaling import held_requests
from deployments.autoscaling.held_requests import HeldByOthers, HeldRequests
from deployments.routing.engine_client import EngineClient
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.submissions import CountedByTenant
from tests.deployments.autoscaling.test_store_thread import Entries
from tests.waiting import until


def test_who_says_nothing_new_is_forgotten():
    now = [0.0]
    heard = HeldByOthers(lambda: now[0])
    assert heard.hear({}) == {}
    assert heard.hear({"a": b"[1, 3]", "b": b"[1, 4]", "other": b"{}"}) == {"a": 3, "b": 4}
    now[0] = held_requests._GONE_S
    assert heard.hear({"a": b"[2, 3]", "b": b"[1, 4]"}) == {"a": 3, "b": 4}
    now[0] += 0.1
    assert heard.hear({"a": b"[2, 3]", "b": b"[1, 4]"}) == {"a": 3}
    assert heard.hear({"a": b"[2, 3]", "b": b"[2, 5]"}) == {"a": 3, "b": 5}


def test_what_a_killed_one_left_counts_for_nobody_who_comes_later():
    now = [0.0]
    heard = HeldByOthers(lambda: now[0])
    assert heard.hear({"killed": b"[7, 12]", "alive": b"[1, 4]"}) == {}
    now[0] = 0.5
    assert heard.hear({"killed": b"[7, 12]", "alive": b"[2, 4]"}) == {"alive": 4}
    assert heard.forgotten() == []
    now[0] = held_requests._FORGOTTEN_S + 0.1
    assert heard.hear({"killed": b"[7, 12]", "alive": b"[9, 1]"}) == {"alive": 1}
    assert heard.forgotten() == ["killed"]


def client(free: int = 7, max_queued: int = 5, max_engines: int = 3) -> EngineClient:
    room = EngineLoad(free, max_queued)
    return EngineClient(None, EngineChoices(), 3, idle_room=room, max_engines=max_engines)  # type: ignore[arg-type]


class Held:
    """A sequence, as far as it is counted."""

    entry = SimpleNamespace(tenant="")


def room_of(ingress: EngineClient) -> int:
    """Requests of one sequence that it would take, one by one."""
    taken = 0
    with contextlib.suppress(ApiError):
        while True:
            ingress.check_room(1)
            ingress._submissions.unplaced.add(cast(Submission, Held()))
            taken += 1
    with pytest.raises(ApiError, match="requests are waiting"):
        ingress.check_room(1)
    ingress._submissions.unplaced = CountedByTenant()
    return taken


async def test_ingresses_together_hold_what_the_engines_may_queue(monkeypatch):
    monkeypatch.setattr(held_requests, "PERIOD_S", 0.02)
    store, ingresses, tasks = Entries(), [client() for _ in range(4)], []
    assert [room_of(one) for one in ingresses] == [21] * 4
    for one in ingresses:
        held = HeldRequests(one.subscriber, lambda one=one: one.num_held, one.may_hold, lambda: store)
        tasks.append(asyncio.create_task(held.run()))
    await until(lambda: all(one._rooms.hold_share.num_ingresses == 4 for one in ingresses), 5)
    assert sorted(one._rooms.hold_share.number for one in ingresses) == [0, 1, 2, 3]
    assert sum(room_of(one) for one in ingresses) == 21
    # One that leaves gives its part to the others.
    tasks.pop().cancel()
    await until(lambda: all(one._rooms.hold_share.num_ingresses == 3 for one in ingresses[:3]), 5)
    assert sum(room_of(one) for one in ingresses[:3]) == 21
    for task in tasks:
        task.cancel()
    await until(lambda: not store.entries, 5)


async def test_what_others_hold_beyond_their_part_is_not_taken_again():
    one = client()
    one.may_hold(HoldShare(0, 2, held_elsewhere=21))
    assert room_of(one) == 0
    one.may_hold(HoldShare(0, 2, held_elsewhere=15))
    assert room_of(one) == 6
    one.may_hold(HoldShare(0, 2, held_elsewhere=10))
    assert room_of(one) == 11


requests = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 5), st.integers(1, 5), requests)
def test_the_bound_is_exact_over_all_ingresses(slots, queued, max_engines, num_ingresses, arrivals):
    """Of whatever sizes requests are; one that is larger than a part is taken where none waits anywhere."""
    total = (slots + queued) * max_engines
    ingresses = [client(slots + queued, queued, max_engines) for _ in range(num_ingresses)]
    held = {str(number): 0 for number in range(num_ingresses)}
    for number, count in [*arrivals, *((number, 1) for number in range(num_ingresses) for _ in range(total))]:
        name = str(number % num_ingresses)
        one, share = ingresses[int(name)], hold_share(name, held)
        one.may_hold(share)
        is_large, before = count > share.part(total), sum(held.values())
        with contextlib.suppress(ApiError):
            one.check_room(count)
            for _ in range(count):
                one._submissions.unplaced.add(cast(Submission, Held()))
            held[name] += count
            assert before == 0 if is_large else sum(held.values()) <= total
    # One by one they fill it to the last place.
    assert sum(held.values()) >= total
