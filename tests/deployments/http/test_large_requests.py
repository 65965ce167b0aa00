"""What one client can do to the others through large bodies: nothing but what its share of two threads and of the room allows."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import ExitStack

import pytest

from cluster.api_errors import ApiError
from cluster.tenant import NOBODY, Tenant
from deployments.http.connection import ClientGoneError, Peer
from deployments.http.large_requests import LargeRequests, large_requests
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import Caller, OpenAiService
from tests.actors.text.tiny_tokenizer import byte_tokenizer
from tests.deployments.ingress_without_ray import Connection, application_of, service_of
from tests.deployments.played_engines import Engines

DEAR = 10**6


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["prepare", "build"])
async def test_another_client_goes_before_what_one_has_sent(kind):
    """As long as the first work of the one has not ended: it gets only one of two threads."""
    work, ended = LargeRequests(), threading.Event()

    def wait(*in_pieces: bool) -> None:
        ended.wait(60)

    flood = [asyncio.ensure_future(getattr(work, kind)("flood", DEAR, wait)) for _ in range(20)]
    await settled()
    try:
        for run in (work.prepare, work.build):
            assert await asyncio.wait_for(run("other", DEAR, lambda *in_pieces: "done"), 20) == "done"
        # What is cheap waits for nothing of the same client either.
        assert await asyncio.wait_for(work.prepare("flood", 1, lambda: "done"), 20) == "done"
        assert not any(task.done() for task in flood)
    finally:
        ended.set()
        await asyncio.gather(*flood)


async def test_who_sends_too_many_bodies_refuses_only_itself():
    work, ended = LargeRequests(), threading.Event()
    flood = [asyncio.ensure_future(work.prepare("flood", DEAR, ended.wait, 60)) for _ in range(256)]
    await settled()
    try:
        with pytest.raises(ApiError, match="this client") as caught:
            await work.prepare("flood", DEAR, str)
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
        assert await asyncio.wait_for(work.prepare("other", DEAR, lambda: 1), 20) == 1
        # An answer that is there is never refused.
        answer = asyncio.ensure_future(work.build("flood", DEAR, lambda in_pieces: in_pieces))
    finally:
        ended.set()
        await asyncio.gather(*flood)
    assert await answer is True
    assert await work.prepare("flood", DEAR, lambda: 1) == 1


def test_a_client_holds_at_most_as_much_as_it_leaves_to_the_others():
    work, largest = LargeRequests(), 4 * 2**20
    with ExitStack() as stack:

        def held(client: str) -> int:
            for count in range(100):
                try:
                    stack.enter_context(work.holding(client)).grow_to(largest, largest)
                except ApiError:
                    return count
            raise AssertionError

        assert [held("one"), held("two"), held("three"), held("one")] == [8, 4, 2, 0]
        assert work.bytes_in_flight == 14 * largest
    assert work.bytes_in_flight == 0
    assert not work._bytes


def test_a_body_that_was_promised_room_keeps_it_whoever_comes():
    work, largest = LargeRequests(), 4 * 2**20
    with ExitStack() as stack:
        bodies = [stack.enter_context(work.holding("one")) for _ in range(8)]
        for body in bodies:
            body.grow_to(largest, largest)
        stack.enter_context(work.holding("two")).grow_to(20_000, largest)
        for body in bodies:
            body.grow_to(largest // 2, largest)
            body.grow_to(largest, largest)


async def test_work_of_which_nobody_waits_for_the_outcome_is_not_done():
    work, ended, done = LargeRequests(), threading.Event(), []
    first = asyncio.ensure_future(work.prepare("one", DEAR, ended.wait, 60))
    others = [asyncio.ensure_future(work.prepare("one", DEAR, done.append, i)) for i in range(3)]
    await settled()
    others[1].cancel()
    await settled()
    ended.set()
    await asyncio.gather(first, others[0], others[2])
    assert done == [0, 2]


async def test_what_work_raises_is_raised():
    work = LargeRequests()

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await work.prepare("one", DEAR, fail)
    assert await work.prepare("one", DEAR, lambda: 1) == 1


async def test_the_body_of_a_client_that_has_left_is_not_read(monkeypatch):
    """It leaves while its body waits for a thread, on which the same client's earlier one is worked."""
    ended, read = threading.Event(), []
    service = service_of(Engines([65]))
    monkeypatch.setattr(service, "_completion", lambda *_: read.append(1))
    before = asyncio.ensure_future(large_requests.prepare("10.1.1.1", DEAR, ended.wait, 60))
    await settled()
    connection = Connection("/v1/completions", {"prompt": "x" * 150_000})
    connection.scope["client"] = ("10.1.1.1", 1)
    connection._pieces.append({"type": "http.disconnect"})
    try:
        # The answer, to nobody, comes before the body's turn.
        await asyncio.wait_for(application_of(service)(connection.scope, connection.receive, connection.send), 20)
    finally:
        ended.set()
    await before
    assert connection.events[0]["status"] == 499
    # What comes behind it in the queue is done, and it was not.
    await large_requests.prepare("10.1.1.1", DEAR, int)
    assert not read


async def test_a_service_starts_nothing_for_who_has_left():
    async def gone() -> dict:
        return {"type": "http.disconnect"}

    engines, ended = Engines([65]), threading.Event()
    engines.submit = lambda *_: pytest.fail("submitted")
    tokenizer = byte_tokenizer()
    service = OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)
    body = bytearray(json.dumps({"prompt": "x", "stop": ["y" * 1000] * 12}).encode())
    before = asyncio.ensure_future(large_requests.prepare("leaver", DEAR, ended.wait, 60))
    also = asyncio.ensure_future(large_requests.prepare("another", DEAR, ended.wait, 60))
    await settled()
    try:
        with pytest.raises(ClientGoneError):
            await service.completion(body, Caller(peer=Peer("leaver", gone)))
    finally:
        ended.set()
        await asyncio.gather(before, also)


@pytest.mark.parametrize(
    ("host", "tenant", "name"),
    [
        ("192.0.2.7", NOBODY, "192.0.2.7"),
        ("192.0.2.7", Tenant("key"), "key"),
        ("2001:db8:1:2:3:4:5:6", NOBODY, "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", NOBODY, "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", NOBODY, "192.0.2.7"),
        ("no%20address", NOBODY, "no%20address"),
        (None, NOBODY, ""),
    ],
)
async def test_a_client_is_its_key_or_its_address_and_ipv6_ones_are_networks(host, tenant, name):
    scope = {"type": "http", "client": (host, 1) if host else None}
    assert Peer.of(scope, asyncio.Event().wait, tenant).name == name
