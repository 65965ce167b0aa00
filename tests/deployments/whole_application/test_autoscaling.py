"""Serve's own autoscaling of the engine deployment: up under load, down again without it, and no error in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import ray
import yaml
from ray import serve
from typer.testing import CliRunner

from cluster.client import AsyncClient
from cluster.config import ENGINE_REPLICA_CPUS, INGRESS_CPUS, Autoscaling, LLMConfig
from cluster.outputs import EngineLoad
from cluster.process.process_liveness import has_ended
from cluster.scaling.fleet import FleetInputs
from cluster.scaling.ingresses import IngressRule
from cluster.scaling.ingresses import decide as ingresses_wanted
from cluster.scaling.inputs import MAX_LOAD_AGE_S
from deployments import llm
from deployments.autoscaling.decision_file import file_name
from deployments.autoscaling.serve_options import autoscaling_config, ingress_autoscaling_config
from deployments.cli import app as bireme
from deployments.endpoints import model_service
from deployments.ingress import OpenAiIngress
from deployments.llm import build_openai_app
from deployments.ray_private.serve import session_logs
from deployments.spares.engine_processes import VARIABLE
from deployments.spares.keepers import SPARE_BYTES
from deployments.start.serve_config import BUILDER
from tests.chaos.served.processes import descendants, kinds, send, title_of
from tests.deployments.conftest import App, wait_for
from tests.ray_resources import used
from tests.served_device import served_on_device

AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 2,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 1,
}
# Of the test in which more clients come until engines enough were wanted.
MORE_LOAD_S, MOST_CLIENTS = 20.0, 24


@dataclass
class Elastic(App):
    """
    Attributes:
        used_before: what was reserved of Ray's resources before it was there.
    """

    used_before: dict[str, float]


@pytest.fixture
def elastic(app: App):
    settings = served_on_device(
        max_num_seqs=4,
        num_kv_blocks=128,
        runner_num_cpus=0.2,
        deployment_config={"autoscaling_config": AUTOSCALING},
        warm_spares=1,
    )
    before = used()
    serve.run(build_openai_app(LLMConfig(**settings)), name="elastic", route_prefix="/elastic")
    elastic = Elastic(app.url + "/elastic", serve.get_deployment_handle("LLMServer", "elastic"), before)
    wait_for(lambda: httpx.get(elastic.url + "/health").status_code == 200, 60, "the application is not ready")
    spares = wait_for(lambda: ready_spares(elastic), 60, "no spares came")
    wait_until_used(beside(before, 1), "spares reserve more than memory")
    yield elastic
    spares |= ready_spares(elastic) or {}
    serve.delete("elastic")
    wait_for(lambda: all(map(has_ended, spares.values())), 30, "spares stay when their application has gone")
    wait_until_used(before, "something of the application stays reserved", 30)
    wait_for(lambda: not spare_processes(), 10, "spares of which nobody knows stay")


def spare_processes() -> list[int]:
    """Of all applications of this test's cluster: those that were started to become an engine's, and belong to none."""
    found = []
    for pid in descendants():
        with contextlib.suppress(OSError):
            is_of_engine = f"{VARIABLE}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
            if is_of_engine and title_of(pid).startswith("ray::IDLE"):
                found.append(pid)
    return found


def controllers() -> list[int]:
    return [pid for pid, kind in kinds().items() if kind == "controller"]


def wait_until_used(expected: dict[str, float], what: str, timeout_s: float = 10) -> None:
    wanted, deadline = pytest.approx({name: amount for name, amount in expected.items() if amount}), time.monotonic()
    while (found := used()) != wanted and time.monotonic() - deadline < timeout_s:
        time.sleep(0.1)
    assert found == wanted, what


def beside(before: dict[str, float], num_engines: int) -> dict[str, float]:
    """What is used with so many engines of ``elastic``, whether spares were adopted or are kept: no more than without any, but
    for the memory that is reserved for them."""
    cpus = INGRESS_CPUS + num_engines * (ENGINE_REPLICA_CPUS + 0.2)  # each has a replica and a runner
    return before | {"CPU": before["CPU"] + cpus, "memory": before.get("memory", 0.0) + SPARE_BYTES}


def status_of(app: App) -> dict:
    return httpx.get(app.url + "/v1/status", timeout=30).json()


def ready_spares(app: App) -> dict[str, int] | None:
    """Process ids by kind; None until one of each is ready."""
    keeper = next(iter(status_of(app)["spares"]), {})
    if not all(keeper.get(kind, {}).get("ready") == 1 for kind in ("replica", "runner")):
        return None
    return {kind: keeper[kind]["pids"][0] for kind in ("replica", "runner")}


def num_up(app: str) -> int:
    """Engines that start or run, at one moment."""
    states = serve.status().applications[app].deployments["LLMServer"].replica_states
    return states.get("STARTING", 0) + states.get("RUNNING", 0)


def num_engines(state: str = "RUNNING", app: str = "elastic") -> int:
    deployment = serve.status().applications[app].deployments["LLMServer"]
    return deployment.replica_states.get(state, 0)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_engines_scale_from_one_to_two_and_back_without_an_error_and_the_second_takes_the_spares(
    elastic: Elastic,
):
    assert num_engines() == 1
    spares = ready_spares(elastic)
    os.kill(spares["runner"], signal.SIGKILL)
    replaced = lambda: (found := ready_spares(elastic)) and found["runner"] != spares["runner"] and found  # noqa: E731
    spares = await asyncio.to_thread(wait_for, replaced, 60, "a dead spare is not replaced")
    (keeper,) = status_of(elastic)["spares"]
    os.kill(keeper["pid"], signal.SIGKILL)
    ended = lambda: all(map(has_ended, spares.values()))  # noqa: E731
    await asyncio.to_thread(wait_for, ended, 10, "spares outlive who keeps them")
    renewed = lambda: (found := ready_spares(elastic)) and found["runner"] != spares["runner"] and found  # noqa: E731
    spares = await asyncio.to_thread(wait_for, renewed, 60, "nobody keeps spares any more")
    (controller,) = controllers()
    os.kill(controller, signal.SIGKILL)
    back = lambda: (found := controllers()) and found != [controller]  # noqa: E731
    await asyncio.to_thread(wait_for, back, 60, "no controller came back")
    assert await asyncio.to_thread(ready_spares, elastic) == spares, "they outlive Serve's controller"
    assert sorted(spare_processes()) == sorted(spares.values()), "and there are no others"
    seen = 1
    async with AsyncClient(elastic.url, timeout=240) as client:

        async def load(until: float) -> list[int]:
            lengths = []
            while time.monotonic() < until or seen < 2:
                options = {"max_tokens": 20, "ignore_eos": True, "return_token_ids": True, "temperature": 0}
                answer = await client.complete("Count:", **options)
                lengths.append(len(answer.choices[0].token_ids))
            return lengths

        deadline = time.monotonic() + 120
        clients = [asyncio.create_task(load(time.monotonic() + 5)) for _ in range(8)]
        while not all(task.done() for task in clients):
            found = await asyncio.to_thread(num_engines)
            if found == 2 and seen < 2:
                what = "an engine of spares reserves more than another one"
                await asyncio.to_thread(wait_until_used, beside(elastic.used_before, 2), what)
            seen = max(seen, found)
            assert time.monotonic() < deadline, "no second engine came"
            await asyncio.sleep(0.3)
        lengths = [length for task in clients for length in task.result()]
    assert seen == 2
    assert set(lengths) == {20}
    status = await asyncio.to_thread(status_of, elastic)
    assert spares["runner"] in [engine.get("pid") for engine in status["engines"]]
    assert all(status["spares"][0][kind]["adopted"] for kind in ("replica", "runner"))
    assert title_of(spares["replica"]).startswith("ray::ServeReplica:elastic:LLMServer")
    await asyncio.to_thread(wait_for, lambda: num_engines() == 1, 90, "the second engine did not go")
    one = beside(elastic.used_before, 1)
    await asyncio.to_thread(wait_until_used, one, "the second engine left something reserved", 30)
    assert httpx.get(elastic.url + "/v1/models").status_code == 200


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


def health(app: App) -> tuple[int, str]:
    try:
        answer = httpx.get(app.url + "/health")
    except httpx.HTTPError as error:
        return 0, str(error)
    return answer.status_code, answer.json()["status"] if answer.status_code == 200 else ""


def ingresses(app: str) -> list[int]:
    title = f"ray::ServeReplica:{app}:OpenAiIngress"
    return [pid for pid in descendants() if title_of(pid).startswith(title)]


def sleeps(app: App) -> bool:
    states = ("STARTING", "RUNNING", "STOPPING")
    return health(app) == (200, "asleep") and not sum(num_engines(state, "sleeper") for state in states)


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
    gone = lambda: not num_engines("RUNNING", "sleeper")  # noqa: E731
    await asyncio.to_thread(wait_for, gone, 60, "the last engine does not go")
    going = num_engines("STOPPING", "sleeper")
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


def num_held(app: App) -> int:
    """By the ingress that is asked."""
    return status_of(app)["load"]["num_held"]


def starting() -> list[int]:
    """Replicas of the engines that Serve starts, or has started."""
    return [pid for pid in descendants() if title_of(pid).startswith("ray::ServeReplica:sleeper:LLMServer")]


def fails(inputs, state, settings):
    """A scaling policy that is broken."""
    raise RuntimeError("this policy always fails")


class Plain:
    """A deployment of somebody else's."""

    def __call__(self) -> str:
        return "here"


@pytest.fixture
def by_objectives(app: App, tmp_path):
    """An application of a file, as ``serve run FILE`` deploys it, whose engines come and go by objectives; at first none."""
    # With this weight an engine that nobody needs stays for two seconds instead of a minute.
    line = {"min_replicas": 0, "max_replicas": 3, "slo_ttft_s": 0.5, "cost_weight": 30.0}
    settings = served_on_device(
        max_num_seqs=2,
        num_kv_blocks=128,
        runner_num_cpus=0.1,
        autoscaling=line,
        ingress_config={"num_replicas": 1},
    )
    application = {"name": "objectives", "route_prefix": "/objectives", "import_path": BUILDER, "args": settings}
    file = tmp_path / "app.yaml"
    file.write_text(yaml.safe_dump({"applications": [application]}))
    command = [str(Path(sys.executable).with_name("serve")), "run", "--non-blocking", str(file)]
    head = ray.get_runtime_context().gcs_address
    subprocess.run(command, env={**os.environ, "RAY_ADDRESS": head}, check=True, timeout=120, capture_output=True)
    found = App(app.url + "/objectives", app.engines)
    wait_for(lambda: health(found)[0] == 200, 60, "the application is not ready")
    yield found
    serve.delete("objectives")


def engine_ids(app: App) -> set[str]:
    """Of those that run."""
    return {engine["engine_id"] for engine in status_of(app)["engines"] if engine.get("state") == "running"}


def autoscale(*arguments: str) -> dict:
    """What ``bireme autoscale`` says of the application, in JSON."""
    shown = CliRunner().invoke(
        bireme, ["autoscale", *arguments, "--json", "--address", ray.get_runtime_context().gcs_address]
    )
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_engines_follow_objectives_that_may_change_and_nothing_that_fails_stops_them(by_objectives: App):
    app = by_objectives
    model = httpx.get(app.url + "/v1/models").json()["data"][0]["id"]
    bodies = [
        {"model": model, "prompt": f"Count {number}:", "max_tokens": 24, "ignore_eos": True, "seed": number}
        for number in range(8)
    ]

    async with httpx.AsyncClient(timeout=120) as client:

        async def ask(body: dict) -> str:
            answer = await client.post(app.url + "/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["text"]

        asleep = lambda: health(app) == (200, "asleep") and not engine_ids(app)  # noqa: E731
        assert await asyncio.to_thread(asleep)
        twins = [await ask(body) for body in bodies]
        seen, killed, deadline = 1, 0, time.monotonic() + 150

        async def hold(body: dict, twin: str) -> None:
            while seen < 3 or not killed:
                assert await ask(body) == twin
                assert time.monotonic() < deadline, f"{seen} engines at most"

        holding = [asyncio.create_task(hold(body, twin)) for body, twin in zip(bodies, twins, strict=True)]
        more_at = time.monotonic() + MORE_LOAD_S
        while not all(task.done() for task in holding) and not any(t.done() and t.exception() for t in holding):
            status = await asyncio.to_thread(status_of, app)
            pids = [engine["pid"] for engine in status["engines"] if engine.get("state") == "running"]
            if len(pids) >= 2 and not killed:  # two may have come at once
                killed = pids[0]
                os.kill(killed, signal.SIGKILL)
            seen = max(seen, len(pids))
            if time.monotonic() > more_at and len(holding) < MOST_CLIENTS:
                # How many engines eight clients need depends on the cores.
                holding += [asyncio.create_task(hold(*pair)) for pair in zip(bodies[:4], twins)]
                more_at = time.monotonic() + MORE_LOAD_S
            await asyncio.sleep(0.2)
        await asyncio.gather(*holding)
        await asyncio.to_thread(wait_for, asleep, 90, "engines stay without load")
        woken = asyncio.create_task(ask({**bodies[0], "max_tokens": 240}))
        await asyncio.to_thread(wait_for, lambda: len(engine_ids(app)) == 1, 60, "nobody wakes")
        shown = await asyncio.to_thread(autoscale, "min_replicas=1")
        assert (shown["settings"]["min_replicas"], shown["running"]) == (1, 1)
        assert (await woken).startswith(twins[0])
        assert [await ask(body) for body in bodies[:2]] == twins[:2]

    (kept,) = await asyncio.to_thread(engine_ids, app)
    shown = await asyncio.to_thread(autoscale, "min_replicas=2", "max_replicas=4", "slo_ttft_s=1.5")
    assert shown["settings"] == {**shown["line"], "min_replicas": 2, "max_replicas": 4, "slo_ttft_s": 1.5}
    two = await asyncio.to_thread(wait_for, lambda: len(ids := engine_ids(app)) == 2 and ids, 60, "no second came")
    assert kept in two, "another objective restarts nobody"

    known = lambda: autoscale()["running"] == 2  # noqa: E731
    await asyncio.to_thread(wait_for, known, 60, "Serve does not know of the second")
    # The bound would hold two of itself; so an engine that nobody needs stays for minutes, as long as what was decided is known.
    await asyncio.to_thread(autoscale, "min_replicas=1", "cost_weight=0.1")
    (controller,) = controllers()
    before_kill = (await asyncio.to_thread(autoscale))["sequence"]
    os.kill(controller, signal.SIGKILL)
    came_back = lambda: (found := controllers()) and found != [controller]  # noqa: E731
    await asyncio.to_thread(wait_for, came_back, 60, "no controller came back")
    sequence = (await asyncio.to_thread(autoscale))["sequence"]
    decided = lambda: (last := autoscale())["sequence"] > sequence + 20 and last["running"] == 2 and last  # noqa: E731
    shown = await asyncio.to_thread(wait_for, decided, 60, "nobody decides after the controller died")
    assert (shown["target"], shown["running"]) == (2, 2)
    assert (shown["settings"]["slo_ttft_s"], shown["settings"]["min_replicas"]) == (1.5, 1)
    shown_after_kill = shown["sequence"]
    assert await asyncio.to_thread(engine_ids, app) == two

    line = {"min_replicas": 1, "max_replicas": 2}
    broken = autoscaling_config(Autoscaling.model_validate(line), "", 1, 64, f"{__name__}:fails")
    plain = serve.deployment(Plain).options(autoscaling_config=broken, ray_actor_options={"num_cpus": 0.01})
    try:
        handle = await asyncio.to_thread(serve.run, plain.bind(), name="broken", route_prefix=None)
        assert await handle.remote() == "here"
        await asyncio.to_thread(autoscale, "--app", "objectives", "--reset")
        await asyncio.to_thread(wait_for, asleep, 60, "the other application's policy stopped this one")
        (error,) = {json.loads(line).get("error") for line in log_of("broken").read_text().splitlines()}
        assert error == "RuntimeError: this policy always fails"
        status = serve.status().applications["broken"].deployments["Plain"]
        assert status.replica_states == {"RUNNING": 1}
    finally:
        await asyncio.to_thread(serve.delete, "broken")

    log = log_of("objectives")
    assert str(log) == shown["log"]
    replayed = CliRunner().invoke(bireme, ["autoscale", "--replay", str(log), "--json"])
    found = json.loads(replayed.stdout)
    assert replayed.exit_code == 0 and found["differences"] == [] and found["num_replayed"] > 20
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {record["target"] for record in records} >= {0, 1, 2, 3}
    told = [FleetInputs(*record["inputs"]) for record in records]
    sampled_at = EngineLoad._fields.index("sampled_at")
    # By the one clock of this machine, and as the policy knew it. Some are of moments in which a process was killed.
    ages = sorted(inputs.now - load[sampled_at] for inputs in told for _, load, _ in inputs.engines)
    known = sorted(age_s for inputs in told for *_, age_s in inputs.engines)
    middle, most = len(ages) // 2, len(ages) * 95 // 100
    print(f"{len(ages)} words of engines, {ages[middle]:.2f} s old, 95 % of them at most {ages[most]:.2f} s")
    assert len(ages) > 20 and ages[middle] < MAX_LOAD_AGE_S * 2
    assert abs(ages[middle] - known[middle]) < MAX_LOAD_AGE_S / 2
    assert all(later["sequence"] > before["sequence"] for before, later in itertools.pairwise(records))
    after = [record["target"] for record in records if before_kill < record["sequence"] <= shown_after_kill]
    assert set(after) == {2}, "a controller that has just begun, and knows of no load, changes nothing"


def eager(inputs, state):
    """The rule of ingresses, on a machine that has cores for two, where a quarter of a core is much."""
    uses = tuple(use._replace(most=2) for use in inputs.uses)
    return ingresses_wanted(inputs._replace(uses=uses), state, IngressRule(full=0.25, aim=0.2, rest=0.18, hold_s=2.0))


@pytest.fixture
def busy_ingress(app: App):
    """An engine that computes nothing, behind as many ingresses as ``eager`` says."""
    settings = {
        "device": "simulated",
        "simulated_step_s": 0.025,
        "max_num_seqs": 64,
        "max_model_len": 2048,
        "runner_num_cpus": 0.1,
        "ingress_config": {"autoscaling_config": ingress_autoscaling_config(f"{__name__}:eager")},
    }
    serve.run(build_openai_app(LLMConfig(**settings)), name="busy", route_prefix="/busy")
    found = App(app.url + "/busy", app.engines)
    wait_for(lambda: health(found)[0] == 200, 60, "the application is not ready")
    yield found
    serve.delete("busy")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_second_ingress_comes_with_the_load_and_leaves_after_it_while_streams_run(busy_ingress: App):
    app = busy_ingress

    def running(state: str = "RUNNING") -> int:
        return serve.status().applications["busy"].deployments["OpenAiIngress"].replica_states.get(state, 0)

    strides: set[int] = set()
    assert running() == 1
    async with AsyncClient(app.url, timeout=120) as client:

        async def ask(max_tokens: int) -> int:
            options = {"max_tokens": max_tokens, "ignore_eos": True, "return_token_ids": True}
            ids: list[int] = []
            async for chunk in client.stream_complete("Count:", **options):
                ids += chunk.choices[0].token_ids
            strides.update(later - before for before, later in itertools.pairwise(ids))
            return len(ids)

        seen, deadline = 1, time.monotonic() + 100

        async def hold() -> None:
            while seen < 2:
                assert await ask(200) == 200
                assert time.monotonic() < deadline, "no second ingress came"

        load = asyncio.gather(*(hold() for _ in range(48)))
        while not load.done():
            seen = max(seen, await asyncio.to_thread(running))
            await asyncio.sleep(0.3)
        await load
        leaves = False

        async def run_on() -> None:
            while not leaves:
                assert await ask(1400) == 1400

        # However long it takes, streams are under way when one leaves.
        few = asyncio.gather(*(run_on() for _ in range(4)))
        left = lambda: running() == 1 and running("STOPPING") == 1  # noqa: E731
        await asyncio.to_thread(wait_for, left, 120, "the second ingress stays without load")
        leaves = True
        await few
    # Its tokens go round the vocabulary with one stride: one that were lost, changed or repeated would make a third.
    assert len(strides) == 2
    await asyncio.to_thread(wait_for, lambda: not running("STOPPING"), 30, "the second ingress does not end")


def log_of(application: str) -> Path:
    return Path(session_logs()) / "serve" / file_name(application)
