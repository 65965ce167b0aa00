"""The blocks of README and pages, against a served model without API keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from ray import serve

from cluster.config import DEFAULT_MODEL
from deployments.llm import build_openai_app
from tests.deployments.conftest import App, wait_for
from tests.served_device import served_on_device
from tests.test_docs import ROOT, blocks_marked

URL_IN_README = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def open_url(app: App):
    """Where a second application answers without a key."""
    # As Ray Serve LLM has it, which is to run, too.
    config = {
        "model_loading_config": {"model_id": DEFAULT_MODEL},
        "engine_kwargs": {"max_num_seqs": 4, "num_kv_blocks": 128, "tensor_parallel_size": 1},
        "experimental_configs": {"num_ingress_replicas": 1},
    }
    arguments = {"llm_configs": [config], **served_on_device(runner_num_cpus=0.3)}
    serve.run(build_openai_app(arguments), name="open", route_prefix="/open")
    url = app.url + "/open"
    wait_for(lambda: httpx.get(url + "/health").status_code == 200, 60, "the application is not ready")
    yield url
    serve.delete("open")


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks_marked("runnable"), ids=lambda code: code.strip().splitlines()[0])
def test_python_block_runs(code: str, open_url: str):
    program = code.replace(URL_IN_README, open_url)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "the block printed nothing"


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks_marked("served"), ids=lambda code: code.strip().splitlines()[0])
def test_shell_block_runs(code: str, open_url: str):
    assert URL_IN_README in code
    script = code.replace(URL_IN_README, open_url).replace(".venv/bin/", str(Path(sys.executable).parent) + "/")
    result = subprocess.run(
        ["bash", "-euc", script.replace("curl http", "curl -sf http")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "the block printed nothing"
