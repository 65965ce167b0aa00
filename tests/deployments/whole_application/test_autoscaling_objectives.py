"""Engines come and go by objectives, which may change; policies that fail and processes that die stop nothing."""

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
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from cluster.config import Autoscaling
from cluster.outputs import EngineLoad
from cluster.scaling.fleet import FleetInputs
from cluster.scaling.inputs import MAX_LOAD_AGE_S
from deployments.autoscaling.decision_file import file_name
from deployments.autoscaling.serve_options import autoscaling_config
from deployments.cli import app as bireme
from deployments.ray_private.serve import session_logs
from deployments.start.serve_config import BUILDER
from tests.deployments.conftest import App, wait_for
from tests.deployments.whole_application.served_states import controllers, health, status_of
from tests.served_device import served_on_device

# Of the test in which more clients come until engines enough were wanted.
MORE_LOAD_S, MOST_CLIENTS = 20.0, 24


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
    # What was given in a file stays known to Serve, and a controller that comes back would deploy it again.
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[]))


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


def log_of(application: str) -> Path:
    return Path(session_logs()) / "serve" / file_name(application)


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
