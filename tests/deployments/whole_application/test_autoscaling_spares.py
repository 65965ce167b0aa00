"""Serve's own autoscaling of the engine deployment: up under load, down without it and no error; new engines take the spares."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from ray import serve

from cluster.client import AsyncClient
from cluster.config import ENGINE_REPLICA_CPUS, INGRESS_CPUS, LLMConfig
from cluster.process.process_liveness import has_ended
from deployments.llm import build_openai_app
from deployments.spares.engine_processes import VARIABLE
from deployments.spares.keepers import SPARE_BYTES
from tests.chaos.served.processes import descendants, title_of
from tests.deployments.conftest import App, wait_for
from tests.deployments.whole_application.served_states import controllers, num_engines, status_of
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


def ready_spares(app: App) -> dict[str, int] | None:
    """Process ids by kind; None until one of each is ready."""
    keeper = next(iter(status_of(app)["spares"]), {})
    if not all(keeper.get(kind, {}).get("ready") == 1 for kind in ("replica", "runner")):
        return None
    return {kind: keeper[kind]["pids"][0] for kind in ("replica", "runner")}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_engines_scale_from_one_to_two_and_back_without_an_error_and_the_second_takes_the_spares(
    elastic: Elastic,
):
    assert num_engines("elastic") == 1
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
            found = await asyncio.to_thread(num_engines, "elastic")
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
    await asyncio.to_thread(wait_for, lambda: num_engines("elastic") == 1, 90, "the second engine did not go")
    one = beside(elastic.used_before, 1)
    await asyncio.to_thread(wait_until_used, one, "the second engine left something reserved", 30)
    assert httpx.get(elastic.url + "/v1/models").status_code == 200
