"""Serve's own autoscaling of the engine deployment: up under load, down again without it, and no error in between."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from ray import serve

from cluster.client import AsyncClient
from cluster.config import LLMConfig
from deployments.llm import build_openai_app
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
    )
    serve.run(build_openai_app(LLMConfig(**settings)), name="elastic", route_prefix="/elastic")
    elastic = App(app.url + "/elastic", serve.get_deployment_handle("LLMServer", "elastic"))
    wait_for(lambda: httpx.get(elastic.url + "/health").status_code == 200, 60, "the application is not ready")
    yield elastic
    serve.delete("elastic")


def running_engines() -> int:
    deployment = serve.status().applications["elastic"].deployments["LLMServer"]
    return deployment.replica_states.get("RUNNING", 0)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_engines_scale_from_one_to_two_and_back_without_an_error(elastic: App):
    assert running_engines() == 1
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
            seen = max(seen, await asyncio.to_thread(running_engines))
            assert time.monotonic() < deadline, "no second engine came"
            await asyncio.sleep(0.3)
        lengths = [length for task in clients for length in task.result()]
    assert seen == 2
    assert set(lengths) == {20}
    await asyncio.to_thread(wait_for, lambda: running_engines() == 1, 90, "the second engine did not go")
    assert httpx.get(elastic.url + "/v1/models").status_code == 200
