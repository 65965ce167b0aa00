"""Nodes that are drained or vanish under load, on several nodes of this one machine."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import ray
from ray import serve
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from cluster.client import Client
from deployments.llm import build_openai_app
from tests.chaos.load import Load
from tests.chaos.report import Report
from tests.chaos.scenario import Setup, idle_stats, is_healthy, judge, leaks

PREEMPTION = 2  # DrainNodeReason: a spot machine's notice
ENGINE_NODE = {"num_cpus": 1, "resources": {"accelerator_type:HERE": 1}}
SETUP = Setup(num_engines=2, num_ingresses=1, num_clients=5)


@pytest.fixture
def nodes():
    """A head for the ingress, and two nodes with room for an engine each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made = [cluster.add_node(**ENGINE_NODE) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, made
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


async def engines_elsewhere(node_id: str, count: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        where = [actor["node_id"] for actor in await asyncio.to_thread(runner_places)]
        if len(where) == count and node_id not in where:
            return
        assert time.monotonic() < deadline, (node_id, where)
        await asyncio.sleep(0.5)


def runner_places() -> list[dict]:
    from ray._private.state import actors

    alive = [a for a in actors().values() if a["State"] == "ALIVE" and a["ActorClassName"] == "StreamingRunner"]
    return [{"node_id": actor["Address"]["NodeID"]} for actor in alive]


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_drained_and_a_vanished_node_cost_no_token(nodes, tmp_path, capsys):
    cluster, (first, second) = nodes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    ingress = {
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0.2, "resources": {"node:__internal_head__": 0.001}},
    }
    engines = {"num_replicas": 2}
    config = SETUP.config(
        tmp_path / "tiny",
        deployment_config=engines,
        ingress_config=ingress,
        runner_num_cpus=0.7,
        accelerator_type="HERE",
        drain_timeout_s=0.5,
    )
    serve.run(build_openai_app(config))
    url = f"http://127.0.0.1:{port}"

    async def scenario() -> Report:
        report = Report(seed=1)
        load = Load(url, SETUP.num_clients, SETUP.max_tokens, seed=1)
        twins = await load.twins()
        running = asyncio.create_task(load.run())
        cluster.add_node(**ENGINE_NODE)
        deadline_ms = int((time.time() + 120) * 1000)
        GcsClient(address=cluster.address).drain_node(first.node_id, PREEMPTION, "spot notice", deadline_ms)
        report.faults["node drained"] += 1
        await engines_elsewhere(first.node_id, 2, 100)
        cluster.remove_node(first)
        cluster.add_node(**ENGINE_NODE)
        cluster.remove_node(second, False)
        report.faults["node removed"] += 1
        await engines_elsewhere(second.node_id, 2, 100)
        with Client(url) as client:
            report.faults["hand-overs"] = client.status()["events"].get("bireme_request_handovers", 0)
        load.stopping = True
        await asyncio.wait_for(running, 60)
        judge(report, load, twins)
        leaks(report, await asyncio.to_thread(idle_stats, 2, 60), SETUP)
        return report

    deadline = time.monotonic() + 60
    while not is_healthy(url):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    report = asyncio.run(scenario())
    with capsys.disabled():
        print(f"\n{report}")
    assert (report.lost, report.changed, report.leaks) == ([], [], [])
