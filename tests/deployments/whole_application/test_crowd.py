"""Many clients on few KV blocks, some of whom walk away: the others notice nothing, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest
from ray import serve

from cluster.client import AsyncClient
from cluster.config import LLMConfig
from deployments.llm import build_openai_app
from tests.deployments.conftest import App, wait_for
from tests.served_device import DEVICE, served_on_device

NUM_CLIENTS, NUM_LEAVERS = 32, 8
# Six requests at a time, of up to five blocks each, in sixteen blocks: preemption is the rule.
SETTINGS = {"max_num_seqs": 6, "num_kv_blocks": 16, "max_num_batched_tokens": 32, "max_queued_requests": 128}
# On the CPU a cache that rounds; a GPU has none.
KV_CACHE_DTYPE = "int8" if DEVICE == "cpu" else "bfloat16"


@pytest.fixture(scope="module")
def small_pool(app: App):
    """A second application beside the first, with hardly any KV cache."""
    config = LLMConfig(**served_on_device(**SETTINGS, kv_cache_dtype=KV_CACHE_DTYPE, runner_num_cpus=0.3))
    serve.run(build_openai_app(config), name="small", route_prefix="/small")
    handle = serve.get_deployment_handle("LLMServer", "small")
    small = App(app.url + "/small", handle)
    wait_for(lambda: httpx.get(small.url + "/health").status_code == 200, 60, "the application is not ready")
    yield small
    serve.delete("small")


def body_of(number: int) -> dict:
    """Half of the requests sample, and all share one of three beginnings."""
    prompt = ["Once upon a time there was", "The three largest rivers of the world are", "def fibonacci(n):"][
        number % 3
    ]
    options = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0.0}
    return {"prompt": f"{prompt} {number}", "max_tokens": 40, "ignore_eos": True, "return_token_ids": True, **options}


async def stream(client: AsyncClient, number: int, leave_after: int | None = None) -> list[int]:
    body = body_of(number)
    tokens: list[int] = []
    async for chunk in client.stream_complete(body.pop("prompt"), **body):
        tokens += chunk.choices[0].token_ids or []
        if leave_after is not None and len(tokens) >= leave_after:
            break
    return tokens


@pytest.mark.slow
async def test_survivors_of_a_crowd_get_their_solo_answers_and_the_engine_is_clean(small_pool: App):
    random_ = random.Random(7)
    leavers = {number: random_.randint(0, 20) for number in random_.sample(range(NUM_CLIENTS), NUM_LEAVERS)}
    survivors = [number for number in range(NUM_CLIENTS) if number not in leavers]
    async with AsyncClient(small_pool.url, timeout=240) as client:
        sampled = random_.sample(survivors, 8)
        solo = {number: await stream(client, number) for number in sampled}
        tasks = {
            number: asyncio.create_task(stream(client, number, leavers.get(number))) for number in range(NUM_CLIENTS)
        }
        for number in random_.sample(sorted(leavers), NUM_LEAVERS // 2):
            await asyncio.sleep(random_.uniform(0, 0.3))
            tasks[number].cancel()
        answers = await asyncio.gather(*tasks.values(), return_exceptions=True)
        crowd = dict(zip(tasks, answers, strict=True))
    for number in survivors:
        assert len(crowd[number]) == 40, crowd[number]
    assert {number: crowd[number] for number in sampled} == solo
    stats = await asyncio.to_thread(small_pool.wait_until_idle, 10.0)
    assert stats["num_blocks_available"] == stats["num_blocks"] == 16
    assert stats["num_preemptions"] > 0
    assert stats["kv_cache_dtype"] == KV_CACHE_DTYPE
