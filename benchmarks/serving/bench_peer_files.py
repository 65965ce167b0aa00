"""Model files from node to node on one machine: the default model through Ray's actor calls, with and without the hashing before.

    python -m benchmarks.serving.bench_peer_files [--rounds 3]

Two Ray nodes share this machine, so the way between them is the loopback interface and both ends share its cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from actors.engine_actor import RunnerActor
from actors.model_files.peers.find_model import model_settings
from actors.model_files.peers.receiver import FileReceiver
from actors.model_files.peers.replies import State
from actors.model_files.source import resolve_model
from cluster.config import EngineConfig
from deployments.replica.ray_peers import RayPeers

NAMES = "bench-peer-files::"
ALL = frozenset(State)


class Sender(RunnerActor):
    """A runner that has the default model's files and loads nothing."""

    def offer(self) -> None:
        self.starting.files.offer(resolve_model(self.config.model))

    async def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    config = EngineConfig()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000},
    )
    try:
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=100_000_000)
        ray.init(address=cluster.address, log_to_driver=False)
        sender = ray.remote(Sender).options(name=NAMES + "a", resources={"there": 1}, max_concurrency=100)
        actor = sender.remote(config, "a")
        ray.get(actor.offer.remote())
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds):
                receiver = FileReceiver(model_settings(config))
                receiver._parent = Path(folder)  # not this machine's own copy
                receiver._folder = receiver._parent / "copy"
                began = time.perf_counter()
                found = receiver.receive(RayPeers(NAMES), ALL)
                seconds = time.perf_counter() - began
                assert found is not None
                size = found.num_bytes
                print(f"round {number}: {size / 1e6:.0f} MB in {seconds:.2f} s, {size / 2**30 / seconds:.2f} GiB/s")
                shutil.rmtree(receiver._folder)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
