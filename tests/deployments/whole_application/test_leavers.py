"""Clients that leave are a normal end: no engine has failed, and the log has nothing to say."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path

import httpx
import ray

from tests.deployments.conftest import KEYS, App, wait_for

LONG = {"max_tokens": 1500, "ignore_eos": True, "seed": 1}
STREAM = {"prompt": "Count: 1, 2,", "stream": True, **LONG}
WHOLE = {"prompt": "Count: 1, 2,", **LONG}
# (request, seconds until its client leaves; None: after three events); four run at a time, eight wait.
WAVES = [
    [*[(STREAM, None)] * 4, *[(STREAM, 0.6 + 0.1 * i) for i in range(3)], *[(WHOLE, 0.7 + 0.1 * i) for i in range(3)]],
    [*[({**STREAM, "n": 3}, 0.5)] * 2, ({**WHOLE, "n": 3}, 0.8), ({**STREAM, "n": 2}, 2.0)],
    [
        *[({**STREAM, "prompt": "word " * 1000}, 0.3 + 0.1 * i) for i in range(3)],
        *[(STREAM, 0.02 * i) for i in range(8)],
    ],
    # Stop strings end these.
    [*[({**STREAM, "stop": ["a", "e", "1", " "]}, None)] * 3, *[({**WHOLE, "stop": ["a", "e", "1", " "]}, 20.0)] * 2],
]


def log_lines() -> Counter[str]:
    """What the application's processes have logged, but for the line that each request has at its end. Serve's own proxy, its
    front here, logs each request by itself."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines: list[str] = []
    for path in [*folder.glob("serve/replica_default_*.log"), *folder.glob("worker-*")]:
        lines += path.read_text(errors="replace").splitlines()
    ours = (line for line in lines if "default_" in line or "bireme" in line)
    return Counter(line for line in ours if "event=request " not in line)


async def leave(client: httpx.AsyncClient, key: str, body: dict, after_s: float | None) -> None:
    async def read() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            count = 0
            async for line in response.aiter_lines():
                count += line.startswith("data: {")
                if count == 3 and after_s is None:
                    return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), after_s)


async def half_a_request(app: App) -> None:
    """A client that vanishes while its body is read."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(app.url.rsplit(":", 1)[1]))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
    writer.write(f'{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"prompt": '.encode())
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.close()


async def test_clients_that_leave_are_no_lost_attempts_and_no_faults_in_the_log(app: App):
    def status() -> dict:
        return httpx.get(f"{app.url}/v1/status", headers=headers, timeout=30).json()

    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    await asyncio.to_thread(app.wait_until_idle)
    events = status()["events"]
    time.sleep(0.5)  # a first look at siblings has lines of its own
    lines = log_lines()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=app.url, timeout=60, limits=limits) as client:
        for wave in WAVES:
            # By turns, because a key has only its share of the queue.
            leaving = [leave(client, KEYS[number % 2], *leaver) for number, leaver in enumerate(wave)]
            await asyncio.gather(half_a_request(app), *leaving)
            idle = await asyncio.to_thread(app.wait_until_idle, 30.0)
    assert sum(map(len, WAVES)) >= 30
    assert idle["num_blocks_available"] == idle["num_blocks"]
    await asyncio.to_thread(wait_for, lambda: status()["running"] == 0, 5, "a sequence is still running")
    assert status()["events"] == events
    time.sleep(0.5)  # lines of a log may come a little later
    assert log_lines() - lines == Counter()


async def test_in_a_flood_of_several_sequences_each_no_answer_breaks_off_and_health_answers(app: App):
    stop, waits, headers = asyncio.Event(), [], {"Authorization": f"Bearer {KEYS[0]}"}
    await asyncio.to_thread(app.wait_until_idle)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)

    async def watch_health() -> None:
        async with httpx.AsyncClient(base_url=app.url, timeout=60) as watcher:
            while not stop.is_set():
                started = time.monotonic()
                assert (await watcher.get("/health")).status_code == 200
                waits.append(time.monotonic() - started)
                await asyncio.sleep(0.05)

    async with httpx.AsyncClient(base_url=app.url, headers=headers, timeout=120, limits=limits) as client:

        async def ask(number: int) -> httpx.Response:
            # More than the queue holds, all that the engine holds, or less.
            body = {"prompt": "Go on:", "n": (16, 12, 4)[number % 3], "max_tokens": 4, "ignore_eos": True, "seed": 1}
            return await client.post("/v1/completions", json={**body, "stream": number % 2 == 0})

        before = (await client.get("/v1/status")).json()["events"]
        watching = asyncio.create_task(watch_health())
        responses = await asyncio.gather(*map(ask, range(60)))
        stop.set()
        await watching
        after = (await client.get("/v1/status")).json()["events"]
    served = [response for response in responses if response.status_code == 200]
    assert 1 <= len(served) < 60
    for number, response in enumerate(responses):
        if response.status_code == 200:
            # A stream has one a choice, and so has a whole answer.
            assert response.text.count('"finish_reason":"length"') == (16, 12, 4)[number % 3], response.text
            assert '"error"' not in response.text
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
            assert 1 <= int(response.headers["retry-after"]) <= 30
    assert after == before
    print(f"longest wait for /health: {max(waits):.2f} s, {len(served)} of {len(responses)} taken")
    # Where engines refused each sequence by itself, it was 16 s with three times the requests.
    assert max(waits) < 5
    await asyncio.to_thread(app.wait_until_idle)
