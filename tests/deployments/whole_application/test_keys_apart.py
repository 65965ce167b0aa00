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
    body = {"model": DEFAULT_MODEL, "prompt": "Go on:", "max_tokens": lasting(40), "ignore_eos": True}
    async with httpx.AsyncClient(base_url=app.url, timeout=120) as client:

        async def ask(key: str, **fields) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return await client.post("/v1/completions", json={**body, **fields}, headers=headers)

        served, refused = 0, []

        async def insist() -> None:
            nonlocal served
            while (answer := await ask(KEYS[0])).status_code != 200:
                refused.append(answer)
            served += 1

        flood = [asyncio.create_task(insist()) for _ in range(16)]
        while len(refused) < 20:
            assert not all(task.done() for task in flood)
            await asyncio.sleep(0.05)
        other = [await ask(KEYS[1], prompt="The sky is", max_tokens=1)]
        served_before = served
        other += [await ask(KEYS[1], prompt=f"{number} and", max_tokens=1) for number in range(2)]
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)
    assert [answer.status_code for answer in other] == [200] * 3, [answer.text for answer in other]
    # Those that ran when it came make room. In order of arrival it would be the tenth or so, and six be served before it.
    assert served_before <= 5
    for answer in refused:
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        error = answer.json()["error"]
        assert error["code"] == "overloaded" and "share of the queue (max_queue_share: 6 of 8)" in error["message"]
        assert KEYS[0] not in answer.text
    await asyncio.to_thread(app.wait_until_idle, 30)
