"""Nodes that are drained or vanish under load, on several nodes of this one machine."""

from __future__ import annotations

import asyncio
import time

import pytest
from ray._raylet import GcsClient

from cluster.client import Client
from tests.chaos.load.clients import Load
from tests.chaos.report import Report
from tests.chaos.scenario import judge, leaks
from tests.chaos.served.application import Running, Setup, application, idle_stats, warm_engines
from tests.chaos.served.nodes import lose_node, runner_places

PREEMPTION = 2  # DrainNodeReason: a spot machine's notice
SETUP = Setup(num_engines=2, num_ingresses=2, num_clients=5, num_nodes=2)


async def engines_elsewhere(node_id: str, count: int, timeout_s: float) -> None:
    """Wait until so many engines answer, none of them on that node."""
    deadline = time.monotonic() + timeout_s
    while True:
        where = list((await asyncio.to_thread(runner_places)).values())
        if len(where) == count and node_id not in where and len(await asyncio.to_thread(warm_engines)) == count:
            return
        assert time.monotonic() < deadline, (node_id, where)
        await asyncio.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_drained_and_a_vanished_node_cost_no_token(tmp_path, capsys):
    async def scenario(running: Running) -> Report:
        cluster, (first, second) = running.cluster, running.nodes
        assert cluster is not None
        report = Report([1])
        load = Load(running.url, SETUP.num_clients, SETUP.max_tokens, seed=1)
        twins = await load.twins()
        loading = asyncio.create_task(load.run())
        await asyncio.to_thread(running.add_node)
        await load.next("decode")
        bystanders = {actor for actor, node_id in runner_places().items() if node_id == second.node_id}
        deadline_ms = int((time.time() + 120) * 1000)
        GcsClient(address=cluster.address).drain_node(first.node_id, PREEMPTION, "spot notice", deadline_ms)
        report.faults["node drained"] += 1
        await engines_elsewhere(first.node_id, 2, 100)
        assert bystanders
        assert bystanders <= set(runner_places()), "an engine on another node went with the one that drained"
        # Clients of its proxy, if Serve still has one there, are cut off like those of a node that vanishes.
        removed = time.monotonic()
        running.nodes.remove(first)
        await asyncio.to_thread(cluster.remove_node, first)
        await asyncio.to_thread(running.add_node)
        lost = time.monotonic()
        running.nodes.remove(second)
        await asyncio.to_thread(lose_node, cluster, second)
        report.faults["node removed"] += 1
        await engines_elsewhere(second.node_id, 2, 100)
        with Client(running.url) as client:
            report.faults["hand-overs"] = client.status()["events"].get("bireme_request_handovers", 0)
        load.stopping = True
        await asyncio.wait_for(loading, 60)
        judge(report, load, twins, [(removed, removed), (lost, lost)])
        leaks(report, await asyncio.to_thread(idle_stats, 2, 60), SETUP)
        return report

    with application(SETUP, tmp_path / "tiny", drain_timeout_s=0.5) as running:
        report = asyncio.run(scenario(running))
    with capsys.disabled():
        print(f"\n{report}")
    assert (report.lost, report.changed, report.leaks) == ([], [], [])
