"""How long the engine of a second node takes to start with the model's files from the first node's engine, and from its own disk.

    python -m benchmarks.serving.bench_peer_start [--rounds 2]

Two Ray nodes share this machine: the way between them is the loopback interface, and both share its cores. No weights are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from actors.model_files.source import resolve_model
from cluster.config import DEFAULT_MODEL, LLMConfig
from cluster.observability.start_stages import STAGES
from cluster.process.cache import cache_dir
from deployments.llm import build_openai_app
from deployments.start.serve_environment import free_port
from gpu_ops.build import build

_TIMEOUT_S = 120.0
# Full with one engine.
_NODE = {"num_cpus": 2, "object_store_memory": 100_000_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    resolve_model(DEFAULT_MODEL)  # it is on this machine before anything is measured
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    for number in range(rounds):
        for has_files in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                engine = _second_start(Path(folder), has_files)
            seconds = engine["start"]["seconds"]
            source = "its disk" if has_files else f"a peer ({engine['model_files_from']['num_bytes'] / 1e6:.0f} MB)"
            stages = ", ".join(f"{stage} {seconds[stage]:.2f}" for stage in STAGES if stage in seconds)
            print(f"round {number}, from {source}: {stages}", flush=True)


def _second_start(cache: Path, has_files: bool) -> dict[str, Any]:
    """What the second engine says of itself; its node has ops, and the model's files or nothing more."""
    library = build().parent
    (cache / "ops").mkdir()
    (cache / "ops" / library.name).symlink_to(library)
    if has_files:
        shutil.copytree(cache_dir() / "models", cache / "models")
    cluster = Cluster(initialize_head=True, head_node_args=_NODE | {"include_dashboard": False})
    port = free_port()
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        _deploy(1)
        (first,) = _engines(port, 1)
        cluster.add_node(**_NODE, env_vars={"BIREME_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"})
        _deploy(2)
        (second,) = (one for one in _engines(port, 2) if one["engine_id"] != first["engine_id"])
        return second
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def _deploy(num_engines: int) -> None:
    config = LLMConfig(
        ready_weights_gb=0,
        num_kv_blocks=256,
        runner_num_cpus=1.5,
        deployment_config={"num_replicas": num_engines},
        ingress_config={"ray_actor_options": {"num_cpus": 0.1}},
    )
    serve.run(build_openai_app(config))


def _engines(port: int, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=30) as reply:
            engines = [engine for engine in json.load(reply)["engines"] if "num_blocks" in engine]
        if len(engines) == count:
            return engines
        time.sleep(0.2)
    raise RuntimeError(f"there are not {count} engines after {_TIMEOUT_S:.0f} s")


if __name__ == "__main__":
    main()
