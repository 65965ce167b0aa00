"""Which runners get a GPU: what settings and cluster say, and what Ray then reserves. GPUs here are a number given to Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import LLMConfig
from deployments.llm import engine_options
from deployments.replica.gpu_placement import ClusterGpus, runner_num_gpus, runner_resources
from deployments.start.app_arguments import SettingsError

ROOT = Path(__file__).parents[3]
NONE, ONE, LATER = ClusterGpus(0, nodes=3), ClusterGpus(1, 0, ("H200",), 1), ClusterGpus(0, 8, (), 1)


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, NONE, 0),
        ({}, ONE, 1),
        ({}, LATER, 1),
        ({"device": "cpu"}, ONE, 0),
        ({"device": "gpu"}, ONE, 1),
        ({"device": "gpu"}, LATER, 1),
        ({"device": "gpu", "runner_num_gpus": 0.5}, ONE, 0.5),
        ({"device": "gpu", "runner_num_gpus": 1.0}, NONE, 1),
        ({"runner_num_gpus": 0.0}, ONE, 0),
        ({"device": "gpu", "accelerator_type": "H200"}, ONE, 1),
    ],
)
def test_what_a_runner_reserves(settings, gpus, expected):
    config = LLMConfig(**settings)
    assert runner_num_gpus(config, gpus) == expected
    assert engine_options(config, expected)["placement_group_bundles"][1] == runner_resources(config, expected)
    assert runner_resources(config, expected).get("GPU", 0) == expected


@pytest.mark.parametrize(
    ("settings", "gpus", "words"),
    [
        ({"device": "gpu"}, NONE, ["device: gpu", "3 nodes", "no GPU", "runner_num_gpus"]),
        ({"device": "gpu"}, ClusterGpus(0), ["device: gpu", "this machine"]),
        ({"device": "gpu", "accelerator_type": "H100"}, ONE, ["accelerator_type: H100", "H200"]),
    ],
)
def test_a_gpu_that_nobody_has_is_refused_instead_of_waited_for(settings, gpus, words):
    with pytest.raises(SettingsError) as caught:
        runner_num_gpus(LLMConfig(**settings), gpus)
    assert all(word in caught.value.message for word in words), caught.value.message


RESERVED = """
import json, sys, ray
from ray import serve
from ray.util import placement_group_table
from deployments.start.app_arguments import SettingsError
from cluster.config import LLMConfig
from deployments.llm import build_openai_app

ray.init(address="local", num_cpus=4, num_gpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)
settings = {"num_kv_blocks": 16, "max_model_len": 64, "runner_num_cpus": 0.2, "device": sys.argv[2], "num_threads": 1}
scaling = {"min_replicas": 1, "max_replicas": 2, "initial_replicas": 2}
try:
    app = build_openai_app(LLMConfig(**settings, deployment_config={"autoscaling_config": scaling}))
except SettingsError as error:
    print("answer:", json.dumps(error.message))
else:
    serve.start(http_options={"location": "NoServer"})
    serve.run(app)
    groups = [list(group["bundles"].values()) for group in placement_group_table().values()]
    print("answer:", json.dumps({"bundles": groups, "left": ray.available_resources().get("GPU", 0)}))
    serve.shutdown()
ray.shutdown()
"""


def reserved(num_gpus: int, device: str):
    """What a cluster of its own with that many GPUs says; nothing computes on them, because Paddle sees none here."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", RESERVED, str(num_gpus), device],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    (answer,) = [line for line in run.stdout.splitlines() if line.startswith("answer: ")]
    return json.loads(answer.removeprefix("answer: "))


@pytest.mark.slow
def test_auto_reserves_a_gpu_for_each_replica_that_autoscaling_starts(smollm2_source):
    found = reserved(3, "auto")
    assert [bundles[1].get("GPU") for bundles in found["bundles"]] == [1.0, 1.0]
    assert all("GPU" not in bundles[0] for bundles in found["bundles"])
    assert found["left"] == 1


@pytest.mark.slow
def test_a_cluster_without_gpus_refuses_device_gpu_at_once():
    assert "Ray sees 1 nodes and no GPU" in reserved(0, "gpu")
