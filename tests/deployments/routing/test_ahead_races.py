"""Requests ahead of their calls, and what goes wrong in between: real runner actors and an ingress's client, in one process."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest

from cluster.request import EngineRequest, RequestKey
from deployments.routing import shared_calls
from deployments.routing.engine_client import EngineClient
from deployments.routing.waiting.turns import Turns
from tests.deployments.routing.local_answers import Answer, expected
from tests.deployments.routing.local_engines import LocalHandle, LocalRunner, attach, local_client, start_runner
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")

NUM_REQUESTS = 12
FAULTS = ("none", "killed", "drained", "killed with its requests unread", "clients leave")


class LocalSender:
    """The ingress's side of a token socket: what is sent is read in order, by a runner that lives.

    Attributes:
        is_read: False: the runner reads nothing any more.
        begun: keys of requests that it was given.
    """

    def __init__(self, runner: LocalRunner, subscriber: str) -> None:
        self._runner = runner
        self._subscriber = subscriber
        self.is_read = True
        self.begun: list[RequestKey] = []

    def send(self, request: EngineRequest) -> bool:
        self._call(self._begin, request)
        return True

    def abort(self, key: RequestKey) -> bool:
        self._call(self._runner.actor.give_up, self._subscriber, key)
        return True

    def _begin(self, request: EngineRequest) -> None:
        self.begun.append((request.request_id, request.attempt))
        self._runner.actor.begin(request)

    def _call(self, method: Any, *args: Any) -> None:
        def read() -> None:
            if self.is_read and not self._runner.is_dead:
                method(*args)

        asyncio.get_running_loop().call_soon(read)


async def engines(folder, step_s: float) -> tuple[EngineClient, LocalHandle, dict[str, LocalSender]]:
    """Two of them, which a client can send requests ahead: the one that has fewer tokens gets the next."""
    runners = {name: await start_runner(folder, name, step_s, max_num_seqs=8) for name in ("first", "second")}
    client, handle = local_client(runners)
    choices = client.choices

    def first_choice(request: EngineRequest) -> str:
        alive = [name for name in runners if not choices.is_avoided(name)] or list(runners)
        best = min(alive, key=choices.token_weight)
        choices.sends(request, best)
        return best

    choices.first_choice = first_choice
    senders = {}
    for name, runner in runners.items():
        attach(client, handle, name)
        stream = client._streams.of(name)
        assert stream is not None
        senders[name] = LocalSender(runner, client.subscriber)
        stream.reached(0, cast(Any, senders[name]))
    await until(lambda: all(len(runner.actor.serving.subscriptions) for runner in runners.values()), 10)
    return client, handle, senders


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_happens_between_a_request_and_its_call_answers_are_those_of_an_engine_alone(
    tiny_model, fault, seed, monkeypatch
):
    chance = random.Random(f"{fault} {seed}")
    monkeypatch.setattr(shared_calls, "FOLLOW_AFTER_S", chance.choice([0.0, 0.005, 0.25]))
    client, handle, senders = await engines(tiny_model, 0.002)
    answers = []
    for number in range(NUM_REQUESTS):
        answers.append(Answer(client, f"r{number}", [number + 1] * chance.randint(1, 20)))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
    # Anywhere between the first request that is on its way and tokens of all.
    for _ in range(chance.randint(0, 12)):
        await asyncio.sleep(0)
    await asyncio.sleep(chance.choice([0, 0, 0.002, 0.02]))
    victim, leavers = handle.runners["second"], []
    if fault.startswith("killed"):
        senders["second"].is_read = fault == "killed"
        await asyncio.sleep(0)
        victim.kill()
    elif fault == "drained":
        await victim.drain.remote(0.0)
    elif fault == "clients leave":
        leavers = chance.sample(answers, NUM_REQUESTS // 2)
        for answer in leavers:
            client.cancel(answer.submission)
    staying = [answer for answer in answers if answer not in leavers]
    ended = await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in staying)), 60)
    assert ended == [None] * len(staying)
    alone = dict(zip(answers, expected(tiny_model, answers)))
    assert [answer.tokens for answer in staying] == [alone[answer] for answer in staying]
    for answer in leavers:
        assert answer.tokens == alone[answer][: len(answer.tokens)]
    assert senders["first"].begun and client.num_running == 0
    if fault == "none":
        assert all(answer.submission.entry.attempt == 0 for answer in answers)
    for runner in handle.runners.values():
        if not runner.is_dead:
            await until(lambda: not list(runner.actor.serving.live.unfinished()), 10)  # noqa: B023 (awaited here)
            assert (await runner.actor.check_integrity())["num_requests_running"] == 0
    await until(lambda: not client.choices._chosen and not len(client._shared), 10)
    await client.close()
    for runner in handle.runners.values():
        await runner.actor.shutdown()


async def test_what_was_called_for_after_its_end_ran_once(tiny_model, monkeypatch):
    """The calls wait until all answers are over: each is answered, and no engine makes a token twice."""
    client, handle, _ = await engines(tiny_model, 0.0)
    held: list[Any] = []
    monkeypatch.setattr(Turns, "add_call", lambda self, begin: held.append(begin))
    answers = [Answer(client, f"r{number}", [number + 1] * 3) for number in range(6)]
    assert await asyncio.wait_for(asyncio.gather(*(answer.ended for answer in answers)), 60) == [None] * 6
    await until(lambda: held, 10)
    assert not handle.sent and len(held) == 1, "one call an engine, when there is a turn"
    tokens = [(await runner.actor.stats())["num_generated_tokens"] for runner in handle.runners.values()]
    for begin in held:
        begin()
    await until(lambda: len(handle.sent) == 6, 10)
    assert {name: engine for name, _, engine, _ in handle.sent} == {
        answer.submission.entry.request_id: answer.submission.ahead.engine_id for answer in answers
    }
    await asyncio.sleep(0.05)
    assert [(await runner.actor.stats())["num_generated_tokens"] for runner in handle.runners.values()] == tokens
    assert all(answer.submission.entry.marks.keys() >= {"sent", "runner", "first_step"} for answer in answers)
    assert [answer.tokens for answer in answers] == expected(tiny_model, answers)
    await client.close()
