"""Engines and ingresses that die, are late or hang in the middle of a move: no request is lost, and no place stays kept."""

from __future__ import annotations

import asyncio
import time

import pytest

from actors.requests import place_reservations
from actors.requests.place_reservations import RESERVED_FOR_S
from deployments.routing import balancer
from deployments.routing.engine_client import EngineClient
from tests.deployments.routing.crowded_engines import STEP_S, crowd, num_waiting
from tests.deployments.routing.local_answers import Answer, expected, start_many
from tests.deployments.routing.local_engines import attach, local_client, start_runner
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


async def test_a_place_that_is_lost_on_the_way_loses_no_request(tiny_model, monkeypatch):
    """The target promises places and is gone when the requests come."""
    first, second, [(client, handle)], answers = await crowd(tiny_model, 1)
    handle.add("second", second)
    attach(client, handle, "second")
    await until(lambda: any(one[3] for one in handle.sent) or len(second.actor.serving.live), 10)
    await second.actor.drain(0.0)
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 8
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


@pytest.mark.parametrize("killed", ["target", "source"])
async def test_an_engine_that_dies_within_a_move_loses_no_request(tiny_model, killed):
    """Between the promise of places and the requests that are to have them."""
    first, second, [(client, handle)], answers = await crowd(tiny_model, 1)
    dies, stays = (second, first) if killed == "target" else (first, second)
    granted: list[int] = []
    reserve = second.actor.reserve

    async def reserve_and_die(*args):
        kept = await reserve(*args)
        granted.append(kept.places)
        second.actor.reserve = reserve
        if killed == "source":
            # After the answer, and before the next call.
            asyncio.get_running_loop().call_soon(first.kill)
        else:
            second.actor.generate = die_of_it
        return kept._replace(num_tokens=10_000)

    async def die_of_it(request):
        second.kill()

    second.actor.reserve = reserve_and_die
    handle.add("second", second)
    attach(client, handle, "second")
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 8
    assert dies.is_dead and granted[0] > 0
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    # What was kept for requests that came in another way is given up, or in two seconds by itself.
    await until(lambda: not stays.actor.serving.engine.scheduler.num_reserved, 10)
    await client.close()
    await stays.actor.check_integrity()
    for runner in (first, second):
        await runner.actor.shutdown()


async def test_an_ingress_that_dies_within_a_move_leaves_no_place_reserved(tiny_model):
    """Between the promise of places and the call that gives requests up: nobody brings them, and nobody gives the places back."""
    first, second = [await start_runner(tiny_model, name, STEP_S) for name in ("first", "second")]
    scheduler = second.actor.serving.engine.scheduler
    (dying, handle), (other, others_handle) = [local_client({"first": first}) for _ in range(2)]
    lost = start_many(dying, 8, "lost")
    await until(lambda: num_waiting(first) == 4, 5)
    died: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answer = dying._balancer._answer

    async def answer_and_die(call, otherwise):
        granted = (await answer(call, otherwise)).places
        end_without_a_word(dying)
        died.set_result(granted)
        await asyncio.Event().wait()

    dying._balancer._answer = answer_and_die
    handle.add("second", second)
    attach(dying, handle, "second")
    assert 0 < await asyncio.wait_for(died, 10) == scheduler.num_reserved
    # Those of another ingress take the places as soon as they are nobody's.
    others_handle.add("second", second)
    others_handle.runners.pop("first")
    attach(other, others_handle, "second")
    answers = start_many(other, 8, "other")
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 8
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await until(lambda: not scheduler.num_reserved, 5 * RESERVED_FOR_S)
    assert not any(answer.ended.done() for answer in lost)
    await until(lambda: not any(runner.actor.serving.engine.has_work() for runner in (first, second)), 30)
    for task in dying._balancer._tasks:
        task.cancel()
    await other.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


def end_without_a_word(client: EngineClient) -> None:
    """What an ingress leaves whose process is gone: calls under way are cancelled and streams broken, and nobody says why."""
    for submission in client._submissions:
        submission.task.cancel()
    for stream in client.streams:
        stream.task.cancel()


async def test_places_that_are_granted_late_are_used_or_given_back_at_once(tiny_model, monkeypatch):
    """Who still waits goes there for them; the engine that was late is asked again as soon as it has answered."""
    monkeypatch.setattr(balancer, "_CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(place_reservations, "RESERVED_FOR_S", 60.0)
    monkeypatch.setattr(balancer, "_ASK_SILENT_AGAIN_S", 60.0)
    first, second = [await start_runner(tiny_model, name, STEP_S * 5) for name in ("first", "second")]
    client, handle = local_client({"first": first})
    answers = start_many(client, 12)
    await until(lambda: num_waiting(first) == 8, 5)
    await asyncio.sleep(0.15)
    reserve, scheduler = second.actor.reserve, second.actor.serving.engine.scheduler
    granted: list[int] = []

    async def answer_late(*args):
        second.actor.reserve = reserve  # the next one is answered at once
        await asyncio.sleep(0.3)
        answer = await reserve(*args)
        granted.append(scheduler.num_reserved)
        return answer

    second.actor.reserve = answer_late
    handle.add("second", second)
    attach(client, handle, "second")
    await until(lambda: granted, 10)
    await until(lambda: len(second.actor.serving.live), 10)
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 12
    assert granted == [4]
    await until(lambda: not scheduler.num_reserved, 5)
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


@pytest.mark.parametrize(("slow", "calls"), [("target", "reserve"), ("source", "hand_back")])
async def test_a_slow_engine_does_not_hold_up_the_moves_of_others(tiny_model, slow, calls):
    """One engine answers no call for seconds. A slow target's requests go to the next engine with room; the places that are kept
    for a slow source's go to others who wait."""
    names = ["full", "free"]
    names.insert(1 if slow == "target" else 0, "slow")
    runners = {name: await start_runner(tiny_model, name, STEP_S * 5) for name in names}
    sources = [name for name in names if name == "full" or (slow == "source" and name == "slow")]
    client, handle = local_client({name: runners[name] for name in sources})
    answers: list[Answer] = []
    for name in sources:
        handle.policy = lambda _, engines, __, name=name: [e for e in engines if e.engine_id == name]
        answers += start_many(client, 8, name)
        await until(lambda name=name: num_waiting(runners[name]) == 4, 5)
    asked: list[float] = []
    real = getattr(runners["slow"].actor, calls)

    async def answer_late(*args):
        asked.append(time.monotonic())
        await asyncio.sleep(5)
        return await real(*args)

    setattr(runners["slow"].actor, calls, answer_late)
    handle.policy = None
    await asyncio.sleep(0.15)
    for name in names:
        if name not in sources:
            handle.add(name, runners[name])
            attach(client, handle, name)
    await until(lambda: asked, 5)
    scheduler = runners["free"].actor.serving.engine.scheduler
    await until(lambda: len(scheduler.running), 5)
    took_s = time.monotonic() - asked[0]
    print(f"somebody began there {took_s:.3f} s after the slow engine was asked")
    assert took_s < 0.5 * 5
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * len(answers)
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await client.close()
    for runner in runners.values():
        await until(lambda runner=runner: not runner.actor.serving.engine.scheduler.num_reserved, 10)
        await runner.actor.check_integrity()
        await runner.actor.shutdown()
