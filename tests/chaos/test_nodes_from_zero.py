"""A request finds neither an engine nor a node for one: Ray's autoscaler adds the node, the engine starts there and answers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from cluster.config import DEFAULT_MODEL, LLMConfig
from deployments.llm import build_openai_app
from gpu_ops.build import build
from tests.chaos.served.application import runners
from tests.chaos.served.autoscaled import autoscaled_cluster
from tests.chaos.served.hub_cache import REPO, hub_cache

FRONT = {"front": 1}
SLOTS = 2


def config() -> LLMConfig:
    return LLMConfig(
        model=REPO,
        tokenizer=DEFAULT_MODEL,
        max_num_seqs=SLOTS,
        max_num_batched_tokens=64,
        num_kv_blocks=256,
        num_threads=1,
        runner_num_cpus=1.5,  # one engine a node, none on the head
        deployment_config={"autoscaling_config": {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": 2}},
        ingress_config={"ray_actor_options": {"num_cpus": 0.1, "resources": {"front": 0.1}}},
    )


def until(condition: Callable[[], object], timeout_s: float, what: str) -> object:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} after {timeout_s} s"
        time.sleep(0.2)
    return found


def other_nodes() -> set[str]:
    """Nodes that live, besides the head."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and "front" not in node["Resources"]}


def ready_runners() -> list[dict]:
    """What engines say that have begun to answer."""
    stats = ray.get([runner.stats.remote() for runner in runners()], timeout=20)
    return [one for one in stats if one.get("num_generated_tokens", 0) > 100]


def begun_at(pid: int) -> float:
    """Seconds from the machine's start to that of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def status_of(url: str) -> str:
    try:
        return httpx.get(f"{url}/health", timeout=5).json().get("status", "")
    except (httpx.HTTPError, ValueError):
        return ""


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_nodes_come_with_requests_get_the_model_from_each_other_and_go(tmp_path: Path, monkeypatch, capsys):
    bare = tmp_path / "bare"
    (bare / "ops").mkdir(parents=True)
    (bare / "ops" / build().parent.name).symlink_to(build().parent)
    with_files = {"HF_HUB_CACHE": str(hub_cache(tmp_path / "hub"))}
    without = {"HF_HUB_CACHE": str(tmp_path / "empty"), "BIREME_CACHE": str(bare)}
    for name, value in {"HF_HUB_OFFLINE": "1", "RAY_SERVE_ENABLE_HA_PROXY": "0", **with_files}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, enough = f"http://127.0.0.1:{port}", threading.Event()
    body = {"model": REPO, "prompt": "Rivers", "max_tokens": 200, "ignore_eos": True, "seed": 3, "temperature": 1.0}

    def ask() -> tuple:
        asked = time.monotonic()
        answer = httpx.post(f"{url}/v1/completions", json=body | {"logprobs": 1}, timeout=90)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        return (choice["text"], repr(choice["logprobs"])), time.monotonic() - asked

    def ask_on() -> list[tuple]:
        found = [ask()]
        while not enough.is_set():
            found.append(ask())
        return found

    cluster = autoscaled_cluster(tmp_path, {"CPU": 1, **FRONT}, {"CPU": 2}, 2, [with_files, without], idle_s=5)
    with cluster as address:
        try:
            ray.init(address=address, log_to_driver=False)
            serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
            serve.run(build_openai_app(config()))
            until(lambda: status_of(url) == "asleep", 60, "the ingress is not ready")
            assert other_nodes() == set(), "an application at rest asks for no node"
            with ThreadPoolExecutor(3 * SLOTS) as pool:
                asked = [pool.submit(ask_on) for _ in range(3 * SLOTS)]
                try:
                    two = until(lambda: len(found := ready_runners()) == 2 and found, 60, "no two engines came")
                finally:
                    enough.set()
                answers = [answer for one in asked for answer in one.result()]
                first_s = min(one.result()[0][1] for one in asked)
            assert len({answer for answer, _ in answers}) == 1, "the same bits on either node"
            assert len(other_nodes()) == 2 and all(one["num_generated_tokens"] for one in two)
            for one in two:
                apart_s = begun_at(one["pid"]) - begun_at(one["replica_pid"])
                assert apart_s < one["start"]["seconds"]["replica"], "it waited for its replica to be prepared"
            (copy,) = (path for path in (bare / "peer_models").iterdir() if path.is_dir())
            assert list(copy.rglob("model.safetensors")), "the second node had no files of its own"
            with capsys.disabled():
                print(f"\nno node, no engine: first answer after {first_s:.1f} s")
            until(lambda: status_of(url) == "asleep", 30, "the engines stay")
            until(lambda: not other_nodes(), 40, "the nodes stay")
        finally:
            serve.shutdown()
            ray.shutdown()
