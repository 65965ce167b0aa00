"""Who came first begins first, whichever engine they wait in, and whoever comes later."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster.routing.lines import open_to_arrival
from cluster.routing.policies import least_tokens
from cluster.scaling.balance import SAME_TIME_S
from deployments.metrics.request_events import ATTEMPTS
from deployments.routing.router import engine_choices
from deployments.routing.waiting import arrival_line
from tests.deployments.routing.crowded_engines import STEP_S, crowd, num_running, num_waiting
from tests.deployments.routing.local_answers import Answer, expected, start_many
from tests.deployments.routing.local_engines import LocalRunner, attach, local_client, start_runner
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


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
