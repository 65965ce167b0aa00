"""An ingress or a proxy that hangs: clients go on as soon as they have had enough of its silence, or Serve has."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from cluster.client import AsyncClient
from tests.chaos.application import Running, Setup, application
from tests.chaos.load import Load, Seen
from tests.chaos.processes import pids_of, send

# A server that is well says something every ten seconds.
IMPATIENT_S, PATIENT_S = 12.0, 60.0
NUM_STREAMS = 8
# Three checks a second apart that wait five seconds each, and a client's way back.
SERVE_NOTICES_S = 30.0
PROXY_STOPPED_S = 14.0


def longest_wait(seen: Seen) -> float:
    return max(later - earlier for earlier, later in zip(seen.times, seen.times[1:]))


async def stream_over(load: Load, twins: dict[int, tuple], target: str, stopped_s: float) -> dict[str, list[float]]:
    """Streams run while a process is stopped under them; how long each waited, by the patience of its client."""
    streams = [Seen(number, "resuming") for number in range(NUM_STREAMS)]

    async def ask(seen: Seen) -> None:
        async with AsyncClient(load.url, timeout=IMPATIENT_S if seen.number % 2 else PATIENT_S) as client:
            await load.ask(client, seen, random.Random(0))

    running = asyncio.gather(*map(ask, streams))
    await load.next("decode")
    pid = pids_of(target)[0]
    send(pid, signal.SIGSTOP)
    try:
        await asyncio.wait((running,), timeout=stopped_s)
    finally:
        send(pid, signal.SIGCONT)
    await asyncio.wait_for(running, 90)
    assert [seen.error for seen in streams] == [None] * NUM_STREAMS
    assert {seen.number: seen.answer for seen in streams} == {n: twins[n] for n in range(NUM_STREAMS)}
    return {
        "impatient": sorted(round(longest_wait(seen), 2) for seen in streams if seen.number % 2),
        "patient": sorted(round(longest_wait(seen), 2) for seen in streams if not seen.number % 2),
    }


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_clients_outlast_a_hung_ingress_and_a_hung_proxy(tmp_path, capsys):
    setup = Setup(num_engines=2, num_ingresses=2, max_tokens=600)

    async def scenario(running: Running) -> tuple[dict, dict]:
        load = Load(running.url, NUM_STREAMS, setup.max_tokens, seed=1)
        twins = await load.twins()
        ingress = await stream_over(load, twins, "ingress", PATIENT_S)
        return ingress, await stream_over(load, twins, "proxy", PROXY_STOPPED_S)

    with application(setup, tmp_path / "tiny") as running:
        ingress, proxy = asyncio.run(scenario(running))
    with capsys.disabled():
        print(f"\nlongest wait of each stream, ingress hung: {ingress}; proxy hung for {PROXY_STOPPED_S:g} s: {proxy}")
    assert max(ingress["patient"]) > PROXY_STOPPED_S, "no stream was on the hung ingress"
    assert max(ingress["patient"]) < SERVE_NOTICES_S
    assert max(ingress["impatient"]) < IMPATIENT_S + 3.0
    assert max(proxy["impatient"] + proxy["patient"]) < PROXY_STOPPED_S + 5.0
