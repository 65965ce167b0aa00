"""Places kept for requests of other engines, requests that go to those, and an engine that leaves."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.requests import place_reservations
from cluster.outputs import NotAdmitted
from tests.actors.subscriber import Subscriber, slow_down, subscribed, told
from tests.waiting import until


async def test_places_are_kept_for_who_reserves_them_and_for_nobody_for_long(actor, monkeypatch):
    monkeypatch.setattr(place_reservations, "RESERVED_FOR_S", 1.5)
    slow_down(actor, 0.01)  # 300 tokens outlast the reservation: no place is free because an answer has ended
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    kept = await actor.reserve("ingress", 3)
    others = await actor.reserve("other", 3)
    assert (kept.places, others.places) == (3, 1)
    await actor.give_back("other", kept.number, 1)
    await actor.give_back("other", others.number, 1)
    # A stranger finds the one place that is left; the next one waits, though slots are free.
    calls = [
        asyncio.create_task(actor.generate(subscribed(name, [1], max_tokens=300, ignore_eos=True)))
        for name in ("x", "y")
    ]
    await stream.wait_for("x", 2)
    assert not stream.of("y")
    moved = subscribed("m", [1], max_tokens=300, ignore_eos=True)
    moved.place = kept.number
    calls.append(asyncio.create_task(actor.generate(moved)))
    await stream.wait_for("m", 1)
    assert not stream.of("y"), "two more places are kept"
    await stream.wait_for("y", 1)
    assert not actor.serving.handover.num_places_kept, "it has waited until the others were given up"
    for call in calls:
        call.cancel()
    await until(lambda: stream.loads()[-1].open_places == 4, 10)
    newer = await actor.reserve("ingress", 9)
    assert newer.places == 4
    await actor.give_back("ingress", kept.number, 9)
    assert actor.serving.handover.num_places_kept == 4, "a call that was late says nothing of newer places"
    await actor.give_back("ingress", newer.number, 9)
    assert (await actor.check_integrity())["num_requests_running"] == 0


async def test_a_call_cancelled_before_the_engine_took_it_leaves_its_place_to_others(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    kept, go_on = await actor.reserve("ingress", 2), threading.Event()
    busy = actor.serving.engine_loop.call(lambda engine: go_on.wait(20))  # meanwhile it takes nothing
    calls = []
    for name in ("ahead", "called"):
        moved = subscribed(name, [1], max_tokens=300, ignore_eos=True)
        moved.place = kept.number
        if name == "ahead":
            actor.begin(moved)
            actor.give_up("ingress", (name, 0))
        calls.append(asyncio.create_task(actor.generate(moved)))
        await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.sleep(0)
    assert len(actor.serving.arrivals) == 2 and not busy.done()
    go_on.set()
    assert told(await calls[0]) == (0, "abort")
    await until(lambda: not len(actor.serving.live) and not len(actor.serving.arrivals), 10)
    assert (await actor.reserve("other", 9)).places == 4
    assert not [delta for delta in stream.of("called") if delta.token_ids]


async def test_who_comes_too_late_for_its_place_waits_like_any_other_and_takes_nobodys(actor):
    slow_down(actor, 0.01)
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    calls = [asyncio.create_task(actor.generate(subscribed("a", [1], max_tokens=300, ignore_eos=True)))]
    await stream.wait_for("a", 1)
    late = await actor.reserve("ingress", 1)
    await actor.give_back("ingress", late.number, 1)
    others = await actor.reserve("other", 3)
    assert others.places == 3
    for name, place in (("x", 0), ("y", late.number), ("z", others.number)):
        request = subscribed(name, [1], max_tokens=300, ignore_eos=True)
        request.place = place
        calls.append(asyncio.create_task(actor.generate(request)))
    await until(lambda: (stream.loads()[-1].line_length, stream.loads()[-1].num_movable) == (3, 3), 5)
    assert actor.serving.handover.num_places_kept == 3
    assert await asyncio.wait_for(asyncio.to_thread(order_of_service, actor), 5) == ["x", "y", "z"]
    await actor.give_back("other", others.number, 3)
    await stream.wait_for("z", 1)
    for call in calls:
        call.cancel()
    await until(lambda: not actor.serving.live.num_unfinished, 10)
    await actor.check_integrity()


async def test_a_place_is_free_again_when_its_request_is_cancelled_on_its_way_to_the_engine(actor):
    Subscriber(actor)
    await asyncio.sleep(0)
    kept = await actor.reserve("ingress", 1)
    is_busy, goes_on = threading.Event(), threading.Event()
    actor.serving.engine_loop.call(lambda engine: (is_busy.set(), goes_on.wait(10)))
    assert await asyncio.to_thread(is_busy.wait, 10)
    request = subscribed("a", [1])
    request.place = kept.number
    call = asyncio.create_task(actor.generate(request))
    await until(lambda: len(actor.serving.arrivals), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    goes_on.set()
    reserved = actor.serving.engine_loop.call(lambda engine: engine.scheduler.num_reserved)
    assert await asyncio.wrap_future(reserved) == 0
    await actor.check_integrity()


def order_of_service(actor) -> list[str]:
    call = actor.serving.engine_loop.call(lambda engine: [s.request.request_id for s in engine.scheduler.waiting])
    return call.result()


async def test_waiting_requests_go_back_to_their_ingress_in_theorder_of_service(actor):
    stream, waiting = Subscriber(actor), "efghij"
    slow_down(actor, 0.02)
    await asyncio.sleep(0)
    running = [
        asyncio.create_task(actor.generate(subscribed(name, [1], max_tokens=200, ignore_eos=True))) for name in "abcd"
    ]
    await stream.wait_for("d", 1)
    calls = [asyncio.create_task(actor.generate(subscribed(name, [2] * 10))) for name in waiting]
    await until(lambda: stream.loads()[-1].num_movable == len(waiting), 5)
    assert stream.loads()[-1].open_places == 0
    assert await actor.hand_back("ingress", 2, 1000) == 0, "they have just come"
    await until(lambda: stream.loads()[-1].oldest_wait_s > 0.2, 5)
    assert await actor.hand_back("other", 2, 1000) == 0
    assert await actor.hand_back("ingress", 4, 25) == 2, "there is memory for two"
    assert list(map(told, await asyncio.gather(*calls[:2]))) == [(0, "move")] * 2
    assert await actor.hand_back("ingress", 9, 1000) == len(waiting) - 2
    assert all(told(reply) == (0, "move") for reply in await asyncio.gather(*calls))
    assert not any(task.done() for task in running), "who has begun stays"
    for task in running:
        task.cancel()
    await until(lambda: not actor.serving.live.num_unfinished, 10)
    await actor.check_integrity()


async def test_drain_lets_a_short_request_finish_and_hands_over_a_long_and_a_waiting_one(actor):
    stream = Subscriber(actor)
    await asyncio.sleep(0)
    calls = {
        name: asyncio.create_task(actor.generate(subscribed(name, [5, 6], max_tokens=500 if name != "short" else 20)))
        for name in ("long", "b", "c", "short", "waiting")
    }
    await stream.wait_for("long", 3)
    slow_down(actor, 0.01)
    moved = await actor.drain(1.0)
    assert moved == 4
    replies = {name: await call for name, call in calls.items()}
    assert told(replies["short"]) == (20, "length")
    assert {name for name, reply in replies.items() if reply.finish_reason == "handover"} == {
        "long",
        "b",
        "c",
        "waiting",
    }
    assert replies["waiting"].num_tokens == 0
    assert isinstance(await actor.generate(subscribed("late", [1])), NotAdmitted)
    cache = actor.serving.engine.scheduler.kv_cache
    await until(lambda: cache.num_available == cache.num_blocks, 5)
    assert (await actor.check_integrity())["state"] == "draining"
