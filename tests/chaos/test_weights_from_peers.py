"""A node without the model, and without a way to the hub, serves it from the other node's files: same fingerprint, same bits."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from cluster.config import DEFAULT_MODEL, LLMConfig
from deployments.cli import app as bireme
from deployments.llm import build_openai_app
from gpu_ops.build import build
from tests.chaos.served.application import runners, wait_until_healthy
from tests.chaos.served.hub_cache import REPO, hub_cache
from tests.chaos.served.nodes import STORE_BYTES

BARE = {"bare": 1}


@dataclass
class Served:
    """The application; ``bare`` is the cache folder of the node that had nothing."""

    url: str
    bare: Path
    stats: list[dict]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("peers")
    library = build()
    bare = folder / "bare"
    (bare / "ops").mkdir(parents=True)
    (bare / "ops" / library.parent.name).symlink_to(library.parent)
    offline = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    with_files = offline | {"HF_HUB_CACHE": str(hub_cache(folder / "hub"))}
    without = offline | {"HF_HUB_CACHE": str(folder / "empty"), "BIREME_CACHE": str(bare)}
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = {"num_cpus": 2, "object_store_memory": STORE_BYTES}
    head = {"include_dashboard": False, "env_vars": with_files}
    cluster = Cluster(initialize_head=True, head_node_args=node | head)
    try:
        cluster.add_node(**node, resources=BARE, env_vars=without)
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)  # too small for an engine
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        config = LLMConfig(
            model=REPO,
            tokenizer=DEFAULT_MODEL,
            max_num_seqs=4,
            num_kv_blocks=256,
            num_threads=1,
            runner_num_cpus=1.5,  # one engine a node
            warm_spares=1,
            deployment_config={"num_replicas": 2},
            ingress_config={"ray_actor_options": {"num_cpus": 0.1, "resources": BARE}},
        )
        serve.run(build_openai_app(config))
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, 60)
        yield Served(url, bare, ray.get([runner.stats.remote() for runner in runners()]))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        del os.environ["RAY_SERVE_ENABLE_HA_PROXY"]


def with_spares(url: str) -> set[str]:
    """Nodes that have a spare of each kind."""
    keepers = httpx.get(f"{url}/v1/status", timeout=30).json()["spares"]
    return {one["node_id"] for one in keepers if all(one[kind]["ready"] == 1 for kind in ("replica", "runner"))}


def test_an_engine_and_an_ingress_start_from_another_nodes_files_and_answer_with_the_same_bits(served):
    first, second = sorted(served.stats, key=lambda stats: "model_files_from" in stats)
    assert "model_files_from" not in first
    received = second["model_files_from"]
    assert first["fingerprint"] == second["fingerprint"]
    (copy,) = (path for path in (served.bare / "peer_models").iterdir() if path.is_dir())
    files = [path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert {path.name for path in files} > {"config.json", "generation_config.json", "model.safetensors"}
    total = sum(path.stat().st_size for path in files)
    # Whoever of engine and ingress came second found what the first one had brought.
    assert received["num_bytes"] in (0, total)
    assert first["num_model_bytes_sent"] == total

    # Each node that can have an engine has spares of its own.
    able = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU") == 2.0}
    deadline = time.monotonic() + 60
    while (found := with_spares(served.url)) != able:
        assert time.monotonic() < deadline, f"{found} instead of {able}"
        time.sleep(0.5)

    def ask(number: int) -> tuple:
        body = {"model": REPO, "prompt": "Rivers", "max_tokens": 48, "seed": 3, "temperature": 1.0, "logprobs": 3}
        answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()["choices"][0]
        return answer["text"], repr(answer["logprobs"])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert len(set(answers)) == 1
    after = ray.get([runner.stats.remote() for runner in runners()])
    assert all(stats["num_generated_tokens"] > 48 for stats in after), "one engine answered everything"


def test_commands_find_what_is_on_another_node_or_say_where(served, tmp_path, monkeypatch):
    """Both nodes are on this machine, so that the logs of both are there until they are looked for in another folder."""
    monkeypatch.setenv("BIREME_URL", served.url)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr("deployments.commands.logs.ray_base", lambda: tmp_path)
    for engine in served.stats:
        name = engine["engine_id"]
        shown = CliRunner().invoke(bireme, ["logs", "--engine", name, "--files"])
        assert any(fnmatch(Path(line).name, engine["log"]) for line in shown.stdout.splitlines())
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for engine in served.stats:
        said = CliRunner().invoke(bireme, ["logs", "--engine", engine["engine_id"]])
        assert said.exit_code == 1
        where = f"{engine['engine_id']} runs on node {engine['node_ip']}; its log there is {engine['log']} in session_latest/logs"
        assert said.stderr.startswith(f"Error: {where}")
        assert said.stderr.count("\n") == 1
    answer = httpx.post(
        f"{served.url}/v1/completions", json={"model": REPO, "prompt": "A", "max_tokens": 2}, timeout=60
    )
    found = CliRunner().invoke(bireme, ["trace", answer.json()["id"]])
    assert (found.exit_code, "the first token" in found.stdout) == (0, True)
