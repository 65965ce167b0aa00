"""Ingresses come with the load and leave after it, while streams run."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from ray import serve

from cluster.client import AsyncClient
from cluster.config import LLMConfig
from cluster.scaling.ingresses import IngressRule
from cluster.scaling.ingresses import decide as ingresses_wanted
from deployments.autoscaling.serve_options import ingress_autoscaling_config
from deployments.llm import build_openai_app
from tests.deployments.conftest import App, wait_for
from tests.deployments.whole_application.served_states import health


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
