"""Serve's own autoscaling of the engine deployment: up under load, down again without it, and no error in between."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
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
from deployments.autoscaling.decision_file import file_name
from deployments.autoscaling.serve_options import autoscaling_config, ingress_autoscaling_config
from deployments.cli import app as bireme
from deployments.llm import build_openai_app
from deployments.ray_private.serve import session_logs
from deployments.start.serve_config import BUILDER
from tests.chaos.served.processes import descendants, kinds, title_of
from tests.deployments.conftest import App, wait_for
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


@pytest.fixture
def elastic(app: App):
    settings = served_on_device(
        max_num_seqs=4,
        num_kv_blocks=128,
        runner_num_cpus=0.2,
        deployment_config={"autoscaling_config": AUTOSCALING},
        warm_spares=1,
    )
    before = used_cpus()
    serve.run(build_openai_app(LLMConfig(**settings)), name="elastic", route_prefix="/elastic")
    elastic = App(app.url + "/elastic", serve.get_deployment_handle("LLMServer", "elastic"))
    wait_for(lambda: httpx.get(elastic.url + "/health").status_code == 200, 60, "the application is not ready")
    spares = wait_for(lambda: ready_spares(elastic), 60, "no spares came")
    # Of the ingress, the replica and its runner.
    as_without = INGRESS_CPUS + ENGINE_REPLICA_CPUS + 0.2
    wait_for(lambda: used_cpus() - before == pytest.approx(as_without), 10, "spares reserve CPUs")
    yield elastic
    spares |= ready_spares(elastic) or {}
    serve.delete("elastic")
    wait_for(lambda: all(map(has_ended, spares.values())), 30, "spares stay when their application has gone")
    wait_for(lambda: used_cpus() == pytest.approx(before), 30, "something of the application stays reserved")


def controllers() -> list[int]:
    return [pid for pid, kind in kinds().items() if kind == "controller"]


def used_cpus() -> float:
    return ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)


def status_of(app: App) -> dict:
    return httpx.get(app.url + "/v1/status", timeout=30).json()


def ready_spares(app: App) -> dict[str, int] | None:
    """Process ids by kind; None until one of each is ready."""
    keeper = next(iter(status_of(app)["spares"]), {})
    if not all(keeper.get(kind, {}).get("ready") == 1 for kind in ("replica", "runner")):
        return None
    return {kind: keeper[kind]["pids"][0] for kind in ("replica", "runner")}


def num_engines(state: str = "RUNNING", app: str = "elastic") -> int:
    deployment = serve.status().applications[app].deployments["LLMServer"]
    return deployment.replica_states.get(state, 0)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_engines_scale_from_one_to_two_and_back_without_an_error_and_the_second_takes_the_spares(elastic: App):
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
            seen = max(seen, await asyncio.to_thread(num_engines))
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
    assert httpx.get(elastic.url + "/v1/models").status_code == 200


SLOTS, QUEUED, MOST_ENGINES = 2, 2, 3


@pytest.fixture
def sleeper(app: App):
    """An application that begins without an engine."""
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
    room, most = MOST_ENGINES * (SLOTS + QUEUED), 1

    async with httpx.AsyncClient(timeout=200, limits=httpx.Limits(max_connections=100)) as client:
        started = time.monotonic()

        async def ask(**changes) -> tuple[int, str, float]:
            answer = await client.post(sleeper.url + "/v1/completions", json=body | changes)
            return answer.status_code, answer.text, time.monotonic() - started

        with pytest.raises(httpx.ReadTimeout):  # who gives up does not cancel what starts for others
            await client.post(sleeper.url + "/v1/completions", json=body, timeout=0.5)
        asked = [asyncio.create_task(ask(stream=number % 2 == 0)) for number in range(room + 4)]
        while not all(task.done() for task in asked):
            states = await asyncio.to_thread(lambda: [num_engines(s, "sleeper") for s in ("STARTING", "RUNNING")])
            most = max(most, sum(states))
            await asyncio.sleep(0.2)
        answers = [task.result() for task in asked]
    refused = [one for one in answers if one[0] == 429]
    assert len(refused) == 4 and max(seconds for _, _, seconds in refused) < 5
    assert sorted({status for status, _, _ in answers}) == [200, 429]
    whole = [
        json.loads(text)["choices"][0]["text"] for status, text, _ in answers if status == 200 and "data: " not in text
    ]
    assert len(whole) >= room // 2 - 4 and len(set(whole)) == 1, "all the same answer"
    assert all(text.rstrip().endswith("[DONE]") for status, text, _ in answers if status == 200 and "data: " in text)
    assert most >= 2, "as many start as are needed"
    with capsys.disabled():
        first = min(seconds for status, _, seconds in answers if status == 200)
        print(f"\nasleep: first of {len(answers)} answers after {first:.1f} s, {most} engines started")
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
    assert (await asyncio.to_thread(sleeper.post, "/v1/completions", body)).status_code == 200


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

        load = asyncio.gather(*(hold(body, twin) for body, twin in zip(bodies, twins, strict=True)))
        while not load.done():
            status = await asyncio.to_thread(status_of, app)
            pids = [engine["pid"] for engine in status["engines"] if engine.get("state") == "running"]
            if len(pids) == 2 and not killed:
                killed = pids[0]
                os.kill(killed, signal.SIGKILL)
            seen = max(seen, len(pids))
            await asyncio.sleep(0.2)
        await load
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
    (controller,) = controllers()
    before_kill = (await asyncio.to_thread(autoscale))["sequence"]
    os.kill(controller, signal.SIGKILL)
    came_back = lambda: (found := controllers()) and found != [controller]  # noqa: E731
    await asyncio.to_thread(wait_for, came_back, 60, "no controller came back")
    sequence = (await asyncio.to_thread(autoscale))["sequence"]
    decided = lambda: (last := autoscale())["sequence"] > sequence + 20 and last["running"] == 2 and last  # noqa: E731
    shown = await asyncio.to_thread(wait_for, decided, 60, "nobody decides after the controller died")
    assert (shown["target"], shown["running"]) == (2, 2)
    assert shown["settings"]["slo_ttft_s"] == 1.5
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
                assert await ask(400) == 400

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
