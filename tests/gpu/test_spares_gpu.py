"""A warm spare beside a GPU: Ray has the same reserved with it and without, it has not begun CUDA, and nothing of it is left.

BIREME_SERVING_DEVICE=cpu tries this where there is no GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from cluster.config import LLMConfig
from cluster.process.process_liveness import has_ended
from deployments.llm import build_openai_app
from deployments.spares.keepers import SPARE_BYTES
from tests.ray_resources import used

DEVICE = os.environ.get("BIREME_SERVING_DEVICE", "gpu")
URL = "http://127.0.0.1:8000/spares"


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} within {timeout_s:g} s"
        time.sleep(0.1)
    return found


def settled() -> dict[str, float]:
    """``used()`` once it stays so for two seconds."""
    found, since = used(), time.monotonic()
    while time.monotonic() - since < 2:
        time.sleep(0.1)
        if (now := used()) != found:
            found, since = now, time.monotonic()
    return found


def status() -> dict[str, Any]:
    return httpx.get(f"{URL}/v1/status", timeout=30).json()


def spares() -> dict[str, int]:
    """Process ids by kind of those that are ready."""
    keeper = next(iter(status().get("spares", ())), {})
    kinds = ("replica", "runner")
    return {kind: keeper[kind]["pids"][0] for kind in kinds if keeper.get(kind, {}).get("ready") == 1}


def has_cuda(pid: int) -> bool:
    """Whether a process has mapped the driver's device files, which ``cuInit`` opens."""
    with open(f"/proc/{pid}/maps") as maps:
        return "/dev/nvidia" in maps.read()


def run(num_spares: int) -> list[dict[str, float]]:
    """What is used without an engine, with one, without one again, and when the application is gone."""
    settings = {
        "device": DEVICE,
        "max_num_seqs": 4,
        "max_model_len": 512,
        "num_kv_blocks": 64,
        "runner_num_cpus": 0.2,
        "warm_spares": num_spares,
        "deployment_config": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 15}},
    }
    found = []
    serve.run(build_openai_app(LLMConfig(**settings)), name="spares", route_prefix="/spares")
    wait_for(lambda: httpx.get(f"{URL}/health").is_success, 60, "the application is there")
    if num_spares:
        wait_for(lambda: len(spares()) == 2, 120, "spares are ready")
    waiting = spares()
    found.append(settled())
    assert not any(has_cuda(pid) for pid in waiting.values())
    answer = httpx.post(f"{URL}/v1/completions", json={"prompt": "Rome is", "max_tokens": 4}, timeout=180)
    assert answer.is_success, answer.text
    (engine,) = status()["engines"]
    assert not num_spares or engine["pid"] == waiting["runner"], "the spare was adopted"
    assert DEVICE == "cpu" or has_cuda(engine["pid"])
    found.append(settled())
    if num_spares:
        wait_for(lambda: len(spares()) == 2, 120, "the next spares are ready")
    wait_for(lambda: not status()["engines"], 120, "the engine has gone")
    wait_for(lambda: has_ended(engine["pid"]), 30, "its process, too")
    found.append(settled())
    left = spares()
    assert not any(has_cuda(pid) for pid in left.values())
    serve.delete("spares")
    wait_for(lambda: all(map(has_ended, left.values())), 30, "spares have ended")
    found.append(settled())
    return found


def test_rays_resources_are_the_same_with_and_without_a_spare():
    ray.init(include_dashboard=False, num_cpus=4, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8000})
        without, with_spare = run(0), run(1)
        print("without", without, "with", with_spare, sep="\n")
        for number, (plain, spare) in enumerate(zip(without, with_spare, strict=True)):
            memory = SPARE_BYTES if number < 3 else 0.0
            assert spare.pop("memory", 0.0) == pytest.approx(plain.pop("memory", 0.0) + memory)
            assert spare == pytest.approx(plain)
        assert DEVICE == "cpu" or [stage.get("GPU", 0) for stage in with_spare] == [0, 1, 0, 0]
    finally:
        serve.shutdown()
        ray.shutdown()
