"""Requests that wait in a full engine move to one with room: real runner actors and ingress clients, in one process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from types import SimpleNamespace

import pytest

from actors import delta_stream
from actors.engine.loop import _QUEUE_LOOK_S
from actors.requests import place_reservations
from actors.requests.place_reservations import RESERVED_FOR_S
from cluster.grammar import REGEX, Grammar
from cluster.routing.lines import open_to_arrival
from cluster.routing.policies import least_tokens
from cluster.scaling.balance import MIN_WAIT_S, SAME_TIME_S, Move, moves
from cluster.scaling.inputs import MAX_LOAD_AGE_S
from deployments.metrics.request_events import ATTEMPTS, HANDOVERS, MOVES
from deployments.routing import balancer
from deployments.routing.engine_client import EngineClient
from deployments.routing.router import engine_choices
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.waiting import arrival_line
from tests.deployments.routing.local_answers import Answer, expected, start_many
from tests.deployments.routing.local_engines import LocalRunner, attach, local_client, start_runner
from tests.engines import write_tiny_model
from tests.waiting import until

STEP_S = 0.01


pytestmark = pytest.mark.usefixtures("this_node")


def num_waiting(runner: LocalRunner) -> int:
    return len(runner.actor.serving.engine.scheduler.waiting)


def num_running(runner: LocalRunner) -> int:
    return len(runner.actor.serving.engine.scheduler.running)


async def test_a_new_engine_takes_those_who_wait_within_half_a_second(tiny_model, monkeypatch):
    ages: list[float] = []

    def noting_ages(views):
        ages.extend(client._streams.of(view.engine_id).load_age_s for view in views)
        return moves(views)

    monkeypatch.setattr(balancer, "moves", noting_ages)
    first, second = [await start_runner(tiny_model, name, STEP_S) for name in ("first", "second")]
    client, handle = local_client({"first": first})
    answers = start_many(client, 16)
    await until(lambda: num_waiting(first) == 12, 5)
    await asyncio.sleep(0.15)
    asked = note_reservations(second)
    handle.add("second", second)
    attach(client, handle, "second")
    ready_at = time.monotonic()
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 16
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)

    sent_to = {name: engine for name, _, engine, moved in handle.sent if moved}
    assert set(sent_to.values()) == {"second"}
    took = sorted(answer.first_at - ready_at for answer in answers if answer.submission.entry.request_id in sent_to)
    print(f"{len(sent_to)} of 12 moved; first tokens of the first four {took[:4]} s after the engine was there")
    print(f"the first move began {asked[0] - ready_at:.3f} s after it was there")
    # As many as it has slots. It speaks at once: on free cores a move begins within 0.05 s, and a step later they run.
    assert len(sent_to) >= 4 and asked[0] - ready_at < 0.1 * 5 and took[3] < 0.2 * 5
    assert max(Counter(name for name, *_, moved in handle.sent if moved).values()) == 1, "nobody moves twice"
    # A thread may be held up between the look and the note of it.
    assert len(ages) > 16 and max(ages) < MAX_LOAD_AGE_S * 5
    print(f"{len(ages)} loads were looked at, the oldest {max(ages):.3f} s old")
    # In the order of their arrival.
    order = [answer.first_at for answer in answers if answer.submission.entry.request_id in sent_to]
    assert order == sorted(order)
    assert client.events.counts[MOVES] == len(sent_to)
    assert not client.events.counts[ATTEMPTS] and not client.events.counts[HANDOVERS]
    await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


def note_reservations(runner: LocalRunner) -> list[float]:
    """When places were asked for there that were granted."""
    asked: list[float] = []
    reserve = runner.actor.reserve

    async def noting(*args):
        at = time.monotonic()
        granted = await reserve(*args)
        if granted[0]:
            asked.append(at)
        return granted

    runner.actor.reserve = noting
    return asked


async def test_a_freed_place_is_taken_by_who_waits_elsewhere_within_half_a_second(tiny_model):
    """Both engines are full, and requests wait in one of them; then an answer ends in the other."""
    first, second = [await start_runner(tiny_model, name, STEP_S * 10) for name in ("first", "second")]
    client, handle = local_client({"first": first, "second": second})
    handle.policy = lambda _, engines, __: [e for e in engines if e.engine_id == "second"]
    there = start_many(client, 4, "there")
    await until(lambda: len(second.actor.serving.engine.scheduler.running) == 4, 5)
    handle.policy = None
    answers = start_many(client, 8)
    await until(lambda: num_waiting(first) == 4, 5)
    await asyncio.sleep(0.15)
    asked = note_reservations(second)
    client.cancel(there[0].submission)
    freed_at = time.monotonic()
    others = answers + there[1:]
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in others)), 60) == [None] * len(others)
    assert [answer.tokens for answer in others] == expected(tiny_model, others)
    names = [name for name, _, engine, moved in handle.sent if moved]
    took = min(a.first_at - freed_at for a in answers if a.submission.entry.request_id in names)
    print(
        f"a move began {asked[0] - freed_at:.3f} s after the place was free; its request had a token after {took:.3f} s"
    )
    # The slot is free two steps of 0.1 s later, and the first token takes two more.
    assert asked[0] - freed_at < 0.2 * 5 and took < 0.4 * 5
    await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


def test_a_move_begins_within_half_a_second_whatever_comes_before_it():
    """By design: the word of a place is one beat old at most when it is heard, what keeps the balancer from an engine that had
    nothing is over within a second wait, and who does not answer keeps others waiting for one more."""
    assert delta_stream.HEARTBEAT_S + balancer._LOOK_AGAIN_S <= 0.5
    assert delta_stream.HEARTBEAT_S + balancer._PATIENCE_S <= 0.5
    assert _QUEUE_LOOK_S + MIN_WAIT_S + delta_stream.HEARTBEAT_S <= 0.5


async def test_an_engine_of_which_nothing_young_is_known_gives_and_takes_nothing(tiny_model, monkeypatch):
    assert delta_stream.HEARTBEAT_S <= MAX_LOAD_AGE_S / 2, "one late beat would leave nobody to move to"
    monkeypatch.setattr(delta_stream, "HEARTBEAT_S", 0.05)
    runner = await start_runner(tiny_model, "one")
    client, handle = local_client({"one": runner})
    attach(client, handle, "one")
    await until(lambda: client._balancer._views(), 5)
    assert client.inputs().engines[0].age_s <= MAX_LOAD_AGE_S
    monkeypatch.setattr(delta_stream, "HEARTBEAT_S", 60.0)
    await until(lambda: client._streams.of("one").load_age_s > MAX_LOAD_AGE_S, 5)
    assert client._balancer._views() == []
    await client.close()
    await runner.actor.shutdown()


async def test_a_place_that_nobody_came_for_is_not_the_next_requests():
    """A client goes away after its request was given up; its place is not kept for those of later moves."""
    of_one = balancer.Balancer("i", [], EngineChoices(), lambda stream: False)  # type: ignore[arg-type]

    def under_way(target: str, age_s: float) -> balancer._UnderWay:
        one = balancer._UnderWay(Move("full", target, 1), SimpleNamespace(), SimpleNamespace(), 1, 1)  # type: ignore[arg-type]
        one.granted_at = time.monotonic() - age_s
        return one

    of_one._kept["full"] = deque([under_way("gone", RESERVED_FOR_S + 0.1), under_way("new", 0.0)])
    assert (of_one.target("full"), of_one.target("full"), of_one.target("other")) == (("new", 0), ("", 0), ("", 0))


async def crowd(folder, num_ingresses: int):
    """Two engines, clients of the first, and their answers, of which four run and the others wait there."""
    first, second = [await start_runner(folder, name, STEP_S) for name in ("first", "second")]
    clients = [local_client({"first": first}) for _ in range(num_ingresses)]
    answers = [a for n, (client, _) in enumerate(clients) for a in start_many(client, 8, f"i{n}-")]
    await until(lambda: num_waiting(first) == 8 * num_ingresses - 4, 5)
    await asyncio.sleep(0.15)
    return first, second, clients, answers


async def test_several_ingresses_do_not_overshoot_together(tiny_model):
    first, second, clients, answers = await crowd(tiny_model, 3)
    for client, handle in clients:
        handle.add("second", second)
        attach(client, handle, "second")
    longest = 0
    while not all(answer.ended.done() for answer in answers):
        # One that has just come stands in the queue until the next step is planned.
        longest = max(longest, num_waiting(second))
        await asyncio.sleep(STEP_S / 4)
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    assert longest <= 4
    scheduler = second.actor.serving.engine.scheduler
    moved = [one for _, handle in clients for one in handle.sent if one[3]]
    assert len(moved) >= 8 and scheduler.num_reserved == 0
    assert max(Counter(name for name, *_ in moved).values()) == 1
    for client, _ in clients:
        await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


async def test_a_place_that_is_lost_on_the_way_loses_no_request(tiny_model, monkeypatch):
    """The target promises places and is gone when the requests come."""
    first, second = [await start_runner(tiny_model, name, STEP_S) for name in ("first", "second")]
    client, handle = local_client({"first": first})
    answers = start_many(client, 8)
    await until(lambda: num_waiting(first) == 4, 5)
    await asyncio.sleep(0.15)
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
    first, second = [await start_runner(tiny_model, name, STEP_S) for name in ("first", "second")]
    client, handle = local_client({"first": first})
    answers = start_many(client, 8)
    await until(lambda: num_waiting(first) == 4, 5)
    await asyncio.sleep(0.15)
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


async def test_the_line_of_a_dead_engine_stands_before_those_who_came_later(tiny_model):
    """They are sent again behind others that waited elsewhere meanwhile, and begin before these."""
    first, second = [await start_runner(tiny_model, name, STEP_S) for name in ("first", "second")]
    client, handle = local_client({"first": first, "second": second})
    lost = start_many(client, 8, "lost")
    await until(lambda: num_waiting(first) == 4, 5)
    handle.policy = lambda _, engines, __: [e for e in engines if e.engine_id == "second"]
    later = start_many(client, 12, "later")
    await until(lambda: num_waiting(second) == 8, 5)
    handle.policy = None
    first.kill()
    answers = lost + later
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * len(answers)
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    waited = [answer.first_at for answer in lost[4:]]
    assert waited == sorted(waited) and waited[-1] < min(answer.first_at for answer in later[4:])
    await client.close()
    for runner in (first, second):
        await runner.actor.shutdown()


@pytest.mark.parametrize(("max_queued", "share"), [(32, 1.0), (14, 1.0), (32, 0.2)])
async def test_those_who_wait_in_several_full_engines_stand_in_one_line(tiny_model, max_queued, share):
    """Of two ingresses, in the order in which they came. Where the line would be longer than half a queue, or than a key's share
    of one, nobody moves."""
    runners = {
        n: await start_runner(tiny_model, n, STEP_S * 5, max_queued_requests=max_queued) for n in ("young", "old")
    }
    clients = [local_client(dict(runners), share) for _ in range(2)]
    fits = max_queued == 32 and share == 1.0
    answers: list[Answer] = []
    longest = 0

    async def come_to(name: str, what: str) -> None:
        for number, (client, handle) in enumerate(clients):
            handle.policy = lambda _, engines, __: [e for e in engines if e.engine_id == name]
            answers.extend(start_many(client, 2, f"{what}{number}-"))
        await until(lambda: len(runners[name].actor.serving.live) >= 4, 5)

    for name in runners:
        await come_to(name, f"runs in {name}")
        await until(lambda name=name: num_running(runners[name]) == 4, 5)
    await come_to("old", "first")
    await asyncio.sleep(2 * SAME_TIME_S)
    came_at = time.monotonic()
    await come_to("young", "second")
    if fits:
        await until(lambda: num_waiting(runners["old"]) == 8, 5)
        print(f"all stood in one line {time.monotonic() - came_at:.3f} s after the younger ones had come")
        line = [one.request.request_id for one in list(runners["old"].actor.serving.engine.scheduler.waiting)]
        assert line == [a.submission.entry.request_id for a in answers[8:]], "in the order in which they came"
    while not all(answer.ended.done() for answer in answers):
        longest = max(longest, *map(num_waiting, runners.values()))
        await asyncio.sleep(STEP_S)
    assert [answer.ended.result() for answer in answers] == [None] * 16
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    sent = [one for _, handle in clients for one in handle.sent]
    into_line = [name for name, attempt, engine, to_place in sent if attempt and engine == "old" and not to_place]
    ids = [answer.submission.entry.request_id for answer in answers[12:] if fits]
    assert sorted(into_line) == sorted(ids), "each comes to the other line, and only once"
    assert longest <= max_queued and not sum(client.events.counts[ATTEMPTS] for client, _ in clients)
    for client, _ in clients:
        await client.close()
    for runner in runners.values():
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


def note_passes(runners: list[LocalRunner], earlier: list[Answer]) -> list[str]:
    """Ids of requests that begin where they were sent, from now on, though one of ``earlier`` waits for which there is no place
    then: open ones, and ones that are kept for it."""
    schedulers = [runner.actor.serving.engine.scheduler for runner in runners]
    ids, passed = {answer.submission.entry.request_id for answer in earlier}, []

    def note(scheduler, admit):
        def noting(sequence):
            if sequence.request.request_id not in ids and not sequence.request.moved:
                waiting = [one for other in schedulers for one in list(other.waiting) if one.is_movable]
                left = sum(one.request.request_id in ids for one in waiting)
                if left > sum(other.num_reserved + other.num_open_places for other in schedulers):
                    passed.append(sequence.request.request_id)
            admit(sequence)

        scheduler.waiting.admit = noting

    for scheduler in schedulers:
        note(scheduler, scheduler.waiting.admit)
    return passed


async def test_no_later_arrival_takes_a_place_from_those_who_wait(tiny_model, monkeypatch):
    """Requests come all the time, and a second engine has come: the router sends none there before those who wait have places."""
    first, second, clients, waiting = await crowd(tiny_model, 2)
    chosen_blindly: set[int] = set()
    later: list[Answer] = []

    def noting(lines, priority):
        if not all(line.is_known for line in lines if line.length):  # no word of who waits, for half a second
            chosen_blindly.add(len(later))
        return open_to_arrival(lines, priority)

    monkeypatch.setattr(engine_choices, "open_to_arrival", noting)
    passed = note_passes([first, second], waiting)
    for client, handle in clients:
        handle.policy = least_tokens
        handle.add("second", second)
        attach(client, handle, "second")
    while any(answer.first_at is None for answer in waiting):
        number = len(later)
        later.append(Answer(clients[number % 2][0], f"late{number}", [number % 100 + 1] * 5))
        await asyncio.sleep(0.03)
    answers = waiting + later
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * len(answers)
    moved = {name for _, handle in clients for name, _, engine, moved in handle.sent if moved and engine == "second"}
    print(f"{len(later)} came later, {len(passed)} of them took a place from those who waited; {len(moved)} moved")
    assert len(later) > 5 and len(moved) >= 4
    # A request is chosen an engine in a pass of the event loop after the one in which it comes.
    exempt = {f"late{n}" for n in range(len(later)) if {n, n + 1} & chosen_blindly}
    assert len(exempt) < len(later) / 2, "too few are looked at"
    assert set(passed) <= exempt
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    for client, _ in clients:
        await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


async def test_no_later_arrival_takes_a_place_where_the_queues_of_full_engines_are_full_too(tiny_model, monkeypatch):
    """Requests of one ingress fill the first engine's queue when another one learns of a second engine. What comes there then
    waits at the ingress until they have moved, and takes the room that they leave in the queue."""
    monkeypatch.setattr(arrival_line, "HELD_FOR_S", 10.0)
    first, second = [
        await start_runner(tiny_model, name, STEP_S * 5, max_queued_requests=4) for name in ("first", "second")
    ]
    (client, handle), (other, others_handle) = [local_client({"first": first}) for _ in range(2)]
    waiting = start_many(client, 8)
    await until(lambda: num_waiting(first) == 4, 5)
    await asyncio.sleep(0.15)
    passed = note_passes([first, second], waiting)
    others_handle.policy = least_tokens
    others_handle.add("second", second)
    for name in ("first", "second"):
        attach(other, others_handle, name)
    await until(lambda: [s.load is not None and s.load.free for s in other.streams] == [0, 8], 5)
    later = start_many(other, 4, "later")
    assert len(other._arrivals) == 4 and not len(second.actor.serving.live)
    handle.add("second", second)
    attach(client, handle, "second")
    answers = waiting + later
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * len(answers)
    assert not passed and not len(other._arrivals)
    assert sum(moved for *_, moved in handle.sent) == 4
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    for one in (client, other):
        await one.close()
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


async def test_who_waits_under_a_grammar_moves_when_the_new_engine_is_ready_for_grammars(tmp_path, smollm2_source):
    """It reads its vocabulary in a process of its own, which takes a second and longer; others move at once."""
    folder = write_tiny_model(tmp_path)
    settings = {"tokenizer": str(smollm2_source.path)}
    first, second = [await start_runner(folder, name, STEP_S * 10, **settings) for name in ("first", "second")]
    client, handle = local_client({"first": first})
    await asyncio.to_thread(first.actor.serving.engine.get_ready_for_grammars)
    assert first.actor.serving.engine.is_ready_for_grammars and not second.actor.serving.engine.is_ready_for_grammars
    running = start_many(client, 4, "running")
    await until(lambda: len(first.actor.serving.engine.scheduler.running) == 4, 5)
    digits = Grammar(REGEX, "[0-9]{4,8}")
    masked, plain = Answer(client, "masked", [3] * 5, grammar=digits), Answer(client, "plain", [4] * 5)
    await until(lambda: num_waiting(first) == 2, 10)
    asked: list[float] = []
    get_ready = second.actor.get_ready_for_grammars

    async def noting():
        asked.append(time.monotonic())
        await get_ready()

    second.actor.get_ready_for_grammars = noting
    handle.add("second", second)
    attach(client, handle, "second")
    answers = [*running, masked, plain]
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 6
    moved_to = {name: engine for name, _, engine, moved in handle.sent if moved}
    assert moved_to["plain"] == "second"
    assert len(asked) == 1
    await until(lambda: second.actor.serving.engine.is_ready_for_grammars, 60)
    assert plain.first_at < masked.first_at
    await client.close()
    for runner in (first, second):
        await runner.actor.check_integrity()
        await runner.actor.shutdown()


def end_without_a_word(client: EngineClient) -> None:
    """What an ingress leaves whose process is gone: calls under way are cancelled and streams broken, and nobody says why."""
    for submission in client._submissions:
        submission.task.cancel()
    for stream in client.streams:
        stream.task.cancel()
