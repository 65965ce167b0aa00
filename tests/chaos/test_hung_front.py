"""An ingress or a proxy that hangs: clients go on as soon as it has been silent for longer than a server may be. And a HAProxy
that is killed under clients which were told of no other address."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from dataclasses import dataclass, replace

import pytest

from cluster.client import AsyncClient
from tests.chaos.load.clients import DECODING, Load
from tests.chaos.load.requests import number_of
from tests.chaos.load.seen import Seen, Twin
from tests.chaos.served.application import Running, Setup, application, wait_until_healthy
from tests.chaos.served.ingresses import open_now
from tests.chaos.served.processes import pids_of, send

NUM_STREAMS = 8
# At most; Serve would end its silence after 15 seconds or more.
INGRESS_STOPPED_S = 60.0
PROXY_STOPPED_S = 6.0
# HAProxy, whose clients know a second port; long enough that nobody can have waited for it.
HAPROXY_STOPPED_S = 30.0
# What a server promises at most to be silent, and what a client bears.
PROMISED_S, BORNE_S = 1.5, 2.5
# What a client's way back may take on a machine that is busy with other things.
WAY_BACK_S = 10.0
# An ingress that Serve replaced because it hung is back by then.
BACK_S = 60.0
# The shortest answer has a third of it: seconds of decoding, so that all streams run at the same time.
SETUP = Setup(num_engines=2, num_ingresses=2, max_tokens=420, haproxy=True)


@dataclass
class Client:
    """A stream and its reader."""

    seen: Seen
    task: asyncio.Task

    @property
    def longest_wait(self) -> float:
        return max(later - earlier for earlier, later in zip(self.seen.times, self.seen.times[1:]))


def begin(load: Load) -> list[Client]:
    async def ask(seen: Seen) -> None:
        async with AsyncClient(load.url) as client:
            await load.ask(client, seen, random.Random(0))

    streams = [Seen(number, "resuming") for number in range(NUM_STREAMS)]
    return [Client(seen, asyncio.create_task(ask(seen))) for seen in streams]


async def under_way(clients: list[Client], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(len(client.seen.times) > DECODING for client in clients):
        assert time.monotonic() < deadline, "the streams did not begin"
        await asyncio.sleep(0.01)


async def clients_of_one_ingress(load: Load) -> tuple[int, list[Client], list[Client]]:
    """Streams that run, and the ingress that holds most of them, perhaps all: its process id, those on it, and all."""
    deadline = time.monotonic() + BACK_S
    while time.monotonic() < deadline:
        clients = begin(load)
        await under_way(clients)
        held = {pid: set(map(number_of, found.seeds)) for pid, found in (await asyncio.to_thread(open_now)).items()}
        pid, numbers = max(held.items(), key=lambda one: len(one[1]), default=(0, set()))
        if on_it := [client for client in clients if client.seen.number in numbers]:
            return pid, on_it, clients
        for client in clients:
            client.task.cancel()
        await asyncio.wait([client.task for client in clients])
        await asyncio.sleep(1.0)
    pytest.fail(f"no ingress said within {BACK_S:.0f} s what it holds")


async def stop_under(clients: list[Client], pids: list[int], stopped_s: float, twins: dict[int, Twin]) -> None:
    """Processes stand still for ``stopped_s`` seconds, or until nobody waits for them; no answer suffers from that."""
    for pid in pids:
        send(pid, signal.SIGSTOP)
    try:
        await asyncio.wait([client.task for client in clients], timeout=stopped_s)
    finally:
        for pid in pids:
            send(pid, signal.SIGCONT)
    await undisturbed_in_the_end(clients, twins)


async def undisturbed_in_the_end(clients: list[Client], twins: dict[int, Twin]) -> None:
    await asyncio.wait_for(asyncio.gather(*(client.task for client in clients)), 90)
    assert [client.seen.error for client in clients] == [None] * len(clients)
    assert {client.seen.number: client.seen.answer for client in clients} == twins


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_clients_outlast_a_hung_ingress_and_hung_proxies(tmp_path, capsys):
    async def ingress_hangs(load: Load, twins: dict[int, Twin]) -> list[Client]:
        pid, on_it, everybody = await clients_of_one_ingress(load)
        await stop_under(everybody, [pid], INGRESS_STOPPED_S, twins)
        return on_it

    async def proxy_hangs(load: Load, proxy: str, stopped_s: float, twins: dict[int, Twin]) -> list[Client]:
        clients = begin(load)
        await under_way(clients)
        await stop_under(clients, [pids_of(proxy)[-1]], stopped_s, twins)
        return clients

    async def scenario(running: Running) -> dict[str, list[Client]]:
        # One address: clients come back through the same proxy.
        of_haproxy, of_proxy = running.url.split(",")
        load = Load(of_proxy, NUM_STREAMS, SETUP.max_tokens, seed=1)
        undisturbed = begin(load)
        await asyncio.gather(*(client.task for client in undisturbed))
        assert [client.seen.error for client in undisturbed] == [None] * NUM_STREAMS
        twins = {client.seen.number: client.seen.answer for client in undisturbed}
        found = {"ingress behind the proxy": await ingress_hangs(load, twins)}
        found["proxy"] = await proxy_hangs(load, "proxy", PROXY_STOPPED_S, twins)
        load = replace(load, url=of_haproxy)
        found["ingress"] = await ingress_hangs(load, twins)
        found["haproxy"] = await proxy_hangs(load, "haproxy", HAPROXY_STOPPED_S, twins)
        found["haproxy killed"] = killed = begin(load)
        await under_way(killed)
        send(pids_of("haproxy")[-1], signal.SIGKILL)
        await undisturbed_in_the_end(killed, twins)
        await asyncio.to_thread(wait_until_healthy, load.url, 60)
        # Two addresses: clients go on at the other one, behind which is the same ingress; then that one hangs, too.
        load = replace(load, url=running.url)
        found["ingress, two addresses"] = await ingress_hangs(load, twins)
        pid, on_both, everybody = await clients_of_one_ingress(load)
        await stop_under(everybody, [pid, *pids_of("proxy")], INGRESS_STOPPED_S, twins)
        return found | {"ingress and the second address": on_both}

    with application(SETUP, tmp_path / "tiny", num_kv_blocks=1024) as running:
        found = asyncio.run(scenario(running))
    waits = {what: sorted(round(client.longest_wait, 2) for client in those) for what, those in found.items()}
    with capsys.disabled():
        print("\nlongest waits", *(f"{what}: {seconds}" for what, seconds in waits.items()), sep="\n")
    for what in ("ingress behind the proxy", "ingress"):
        assert waits[what][0] > PROMISED_S, "no stream was on the hung ingress"
    # Once more means another silence that is borne, for all of them.
    first = waits["ingress, two addresses"]
    assert first[len(first) // 2] < 2 * BORNE_S, "streams came to the hung ingress once more"
    # Streams through HAProxy had named the port of the proxy beside it; those of that proxy have nowhere else to go.
    assert PROMISED_S < waits["haproxy"][-1] < BORNE_S + WAY_BACK_S < HAPROXY_STOPPED_S
    hung = waits.pop("proxy")
    assert PROXY_STOPPED_S - 1.0 < hung[-1] < PROXY_STOPPED_S + WAY_BACK_S
    assert max(seconds[-1] for seconds in waits.values()) < BORNE_S + WAY_BACK_S
