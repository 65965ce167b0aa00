"""A deployment without an engine: requests wake it, none of them is lost, and it goes to sleep again."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from collections.abc import Callable

import httpx
import pytest
from ray import serve

from cluster.config import LLMConfig
from deployments import llm
from deployments.endpoints import model_service
from deployments.ingress import OpenAiIngress
from deployments.llm import build_openai_app
from tests.chaos.served.processes import descendants, send, title_of
from tests.deployments.conftest import App, wait_for
from tests.deployments.whole_application.served_states import health, num_engines, status_of
from tests.ray_resources import used
from tests.served_device import served_on_device

SLOTS, QUEUED, MOST_ENGINES = 2, 2, 3


class Impatient(OpenAiIngress):
    """Where there is to be an engine, it answers 503 after a second without one instead of after half a minute."""

    async def start(self) -> None:
        model_service._LOADING_PATIENCE_S = 1.0  # in the ingress's process
        await super().start()


@pytest.fixture
def sleeper(app: App, monkeypatch):
    """An application that begins without an engine."""
    monkeypatch.setattr(llm, "OpenAiIngress", Impatient)
    settings = served_on_device(
        max_num_seqs=SLOTS,
        max_queued_requests=QUEUED,
        num_kv_blocks=128,
        runner_num_cpus=0.1,
        deployment_config={
            "autoscaling_config": {"min_replicas": 0, "max_replicas": MOST_ENGINES, "downscale_delay_s": 1}
        },
        ingress_config={"num_replicas": 1},
    )
    serve.run(build_openai_app(LLMConfig(**settings)), name="sleeper", route_prefix="/sleeper")
    yield App(app.url + "/sleeper", serve.get_deployment_handle("LLMServer", "sleeper"))
    serve.delete("sleeper")


def num_up(app: str) -> int:
    """Engines that start or run, at one moment."""
    states = serve.status().applications[app].deployments["LLMServer"].replica_states
    return states.get("STARTING", 0) + states.get("RUNNING", 0)


def ingresses(app: str) -> list[int]:
    title = f"ray::ServeReplica:{app}:OpenAiIngress"
    return [pid for pid in descendants() if title_of(pid).startswith(title)]


def sleeps(app: App) -> bool:
    states = ("STARTING", "RUNNING", "STOPPING")
    return health(app) == (200, "asleep") and not sum(num_engines("sleeper", state) for state in states)


def num_held(app: App) -> int:
    """By the ingress that is asked."""
    return status_of(app)["load"]["num_held"]


def starting() -> list[int]:
    """Replicas of the engines that Serve starts, or has started."""
    return [pid for pid in descendants() if title_of(pid).startswith("ray::ServeReplica:sleeper:LLMServer")]


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_requests_wake_a_deployment_that_sleeps_and_none_is_lost(sleeper: App, capsys):
    await asyncio.to_thread(wait_for, lambda: health(sleeper)[0] == 200, 60, "the ingress is not ready")
    await asyncio.sleep(3)
    assert sleeps(sleeper), "an ingress that only starts wakes nobody"
    assert httpx.get(sleeper.url + "/v1/models").json()["data"][0]["max_model_len"] > 0
    body = {"model": "smollm2", "prompt": "Count:", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    body["model"] = httpx.get(sleeper.url + "/v1/models").json()["data"][0]["id"]
    room, up = MOST_ENGINES * (SLOTS + QUEUED), []
    needed = min(MOST_ENGINES, math.ceil(room / SLOTS))  # each is to have as many as it has slots

    async with httpx.AsyncClient(timeout=200, limits=httpx.Limits(max_connections=100)) as client:
        started = time.monotonic()

        async def ask(**changes) -> tuple[int, str, float]:
            answer = await client.post(sleeper.url + "/v1/completions", json=body | changes)
            return answer.status_code, answer.text, time.monotonic() - started

        with pytest.raises(httpx.ReadTimeout):  # who gives up does not cancel what starts for others
            await client.post(sleeper.url + "/v1/completions", json=body, timeout=0.5)
        asked = [asyncio.create_task(ask(stream=number % 2 == 0)) for number in range(room + 4)]
        while not all(task.done() for task in asked):
            up.append(await asyncio.to_thread(num_up, "sleeper"))
            await asyncio.sleep(0.05)
        answers = [task.result() for task in asked]
    refused = [one for one in answers if one[0] == 429]
    assert len(refused) == 4 and max(seconds for _, _, seconds in refused) < 5
    assert sorted({status for status, _, _ in answers}) == [200, 429]
    whole = [
        json.loads(text)["choices"][0]["text"] for status, text, _ in answers if status == 200 and "data: " not in text
    ]
    assert len(whole) >= room // 2 - 4 and len(set(whole)) == 1, "all the same answer"
    assert all(text.rstrip().endswith("[DONE]") for status, text, _ in answers if status == 200 and "data: " in text)
    assert max(up) == needed, "as many start as are needed"
    # The first request starts one, by Serve's own rule; all others are asked for at once.
    assert set(up[: up.index(needed)]) <= {0, 1}, f"engines that started or ran, one look after the other: {up}"
    with capsys.disabled():
        first = min(seconds for status, _, seconds in answers if status == 200)
        print(f"\nasleep: first of {len(answers)} answers after {first:.1f} s, {needed} engines started")
    # Who comes while the last engine is told to go, or goes, finds it or the next one.
    for delay_s in (1.1, 1.4, 1.7):
        answer = await asyncio.to_thread(sleeper.post, "/v1/completions", body)
        assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, whole[0])
        await asyncio.sleep(delay_s)
    gone = lambda: not num_engines("sleeper")  # noqa: E731
    await asyncio.to_thread(wait_for, gone, 60, "the last engine does not go")
    going = num_engines("sleeper", "STOPPING")
    answer = await asyncio.to_thread(sleeper.post, "/v1/completions", body)
    assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, whole[0])
    with capsys.disabled():
        print(f"asked while {going} engines ended and none ran")
    await asyncio.to_thread(wait_for, lambda: sleeps(sleeper), 60, "it does not go to sleep again")

    # A new ingress wakes nobody, and holds what it gets, too.
    (pid,) = ingresses("sleeper")
    os.kill(pid, signal.SIGKILL)
    came_back = lambda: pid not in ingresses("sleeper") and health(sleeper)[0] == 200  # noqa: E731
    await asyncio.to_thread(wait_for, came_back, 60, "no ingress came back")
    assert sleeps(sleeper)
    await check_that_who_gives_up_alone_leaves_nothing(sleeper, body)
    await check_that_ingresses_hold_for_as_long_as_a_start_takes(sleeper, body, whole[0])


async def check_that_who_gives_up_alone_leaves_nothing(app: App, body: dict) -> None:
    """The start that it has caused goes on or not, as Serve likes; then it is as if nobody had asked."""
    before = used()
    async with httpx.AsyncClient(timeout=60) as client:
        asking = asyncio.create_task(client.post(app.url + "/v1/completions", json=body))
        await asyncio.to_thread(wait_for, starting, 30, "nothing starts")
        assert num_held(app) == 1
        asking.cancel()
        await asyncio.to_thread(wait_for, lambda: num_held(app) == 0, 5, "who has gone is held")
    await asyncio.to_thread(wait_for, lambda: sleeps(app), 60, "an engine stays that nobody waits for")
    await asyncio.to_thread(wait_for, lambda: used() == before, 30, "something stays reserved")


async def check_that_ingresses_hold_for_as_long_as_a_start_takes(app: App, body: dict, text: str) -> None:
    """One that is killed takes those that it holds with it, and the start goes on; its successor holds what comes until the
    engine is there, however long that takes."""
    ask = lambda: asyncio.create_task(client.post(app.url + "/v1/completions", json=body))  # noqa: E731
    stopped: set[int] = set()

    async def start_is_held_up(until: Callable[[], object], timeout_s: float, what: str) -> None:
        """Until then. Whatever else Serve starts is stopped, too."""
        deadline = time.monotonic() + timeout_s
        while not await asyncio.to_thread(until):
            assert time.monotonic() < deadline, what
            new = {*starting()} - stopped
            stopped.update(new)
            for pid in new:
                send(pid, signal.SIGSTOP)
            await asyncio.sleep(0.05)

    async with httpx.AsyncClient(timeout=120) as client:
        lost = ask()
        try:
            await start_is_held_up(lambda: stopped, 30, "nothing starts")
            (pid,) = ingresses("sleeper")
            os.kill(pid, signal.SIGKILL)
            (told,) = await asyncio.wait_for(asyncio.gather(lost, return_exceptions=True), 10)
            assert isinstance(told, httpx.TransportError) or told.status_code >= 500, "its client is told"
            back = lambda: pid not in ingresses("sleeper") and health(app) == (200, "asleep")  # noqa: E731
            await start_is_held_up(back, 60, "no ingress came back")
            held = [ask() for _ in range(SLOTS)]
            await start_is_held_up(lambda: num_held(app) == SLOTS, 10, "the new ingress holds none")
            # Longer than an ingress waits where there is to be an engine.
            longer = time.monotonic() + 3
            await start_is_held_up(lambda: time.monotonic() > longer, 10, "")
            assert not any(one.done() for one in held) and num_held(app) == SLOTS
        finally:
            for pid in stopped:
                send(pid, signal.SIGCONT)
        for one in held:
            answer = await one
            assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, text)
    await asyncio.to_thread(wait_for, lambda: sleeps(app) and not num_held(app), 60, "it does not go to sleep")
