"""Users of different API keys, over HTTP: none learns from the prefix cache what another one asked, and none holds the queue."""

from __future__ import annotations

import asyncio

import httpx

from cluster.config import DEFAULT_MODEL
from tests.deployments.conftest import KEYS, App
from tests.served_device import lasting


def complete(app: App, key: str, **fields) -> httpx.Response:
    body = {"model": DEFAULT_MODEL, "max_tokens": 1, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{app.url}/v1/completions", json=body, headers=headers, timeout=120)


def cached_tokens(app: App, key: str, **fields) -> int:
    """Of one prompt of some blocks, as the usage of its answer tells."""
    usage = complete(app, key, prompt=list(range(2000, 2100)), **fields).json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"]


def test_a_key_finds_its_own_prefixes_in_the_cache_and_nobody_elses(app: App):
    assert cached_tokens(app, KEYS[0]) == 0
    assert cached_tokens(app, KEYS[0]) == 96
    assert cached_tokens(app, KEYS[1]) == 0, "the second key learns that the first one sent this prompt"
    assert cached_tokens(app, KEYS[1]) == 96
    assert cached_tokens(app, KEYS[0], cache_salt="a user of the first key") == 0
    assert cached_tokens(app, KEYS[1], cache_salt="a user of the first key") == 0


async def test_a_key_that_floods_fills_its_share_and_the_other_one_is_served(app: App):
    # 4 run; of 8 that may wait 6 are the share of one key (tests/deployments/conftest.py).
    await asyncio.to_thread(app.wait_until_idle)
    body = {"model": DEFAULT_MODEL, "prompt": "Go on:", "max_tokens": lasting(80), "ignore_eos": True}
    async with httpx.AsyncClient(base_url=app.url, timeout=120) as client:

        async def ask(key: str, **fields) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return await client.post("/v1/completions", json={**body, **fields}, headers=headers)

        flood = [asyncio.create_task(ask(KEYS[0])) for _ in range(16)]
        done: set[asyncio.Task] = set()
        while not done:
            done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        other = await ask(KEYS[1], prompt="The sky is", max_tokens=1)
        done, rest = await asyncio.wait(flood, timeout=0)
        for task in rest:
            task.cancel()
    assert other.status_code == 200
    answers = [task.result() for task in done]
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    # Those that ran when it came make room. In order of arrival it would be the tenth or so, and six be served before it.
    assert len(served) <= 5
    assert refused
    for answer in refused:
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        error = answer.json()["error"]
        assert error["code"] == "overloaded" and "share of the queue (max_queue_share: 6 of 8)" in error["message"]
        assert KEYS[0] not in answer.text
    await asyncio.to_thread(app.wait_until_idle, 30)
