"""The blocks of README and pages, against a served model without API keys; those that need a model with tools, against a tiny one
whose template knows them. Shell blocks run in a folder with small files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from ray import serve

from cluster.config import DEFAULT_MODEL
from deployments.llm import build_openai_app
from tests.deployments.conftest import CALLING, KEYS, App, wait_for
from tests.page_files import write_page_files
from tests.served_device import served_on_device
from tests.test_docs import ROOT, blocks_marked

URL_IN_README = "http://127.0.0.1:8000"
# What a person waits for is no part of what is tested.
_MINUTES = re.compile(r"--max-seconds \d+")


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
    # Ray gathers metrics every ten seconds.
    wait_for(lambda: "ray_bireme_" in httpx.get(url + "/metrics", params={"only": "bireme"}).text, 30, "no metrics")
    yield url
    serve.delete("open")


def run_python(code: str, url: str) -> None:
    program = code.replace(URL_IN_README, url)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "the block printed nothing"


def run_shell(code: str, url: str, folder: Path, **variables: str) -> None:
    write_page_files(folder, "", [])
    script = code.replace(URL_IN_README, url).replace("curl http", "curl -sf http").replace(".venv/bin/", "")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-euc", _MINUTES.sub("--max-seconds 3", script)],
        cwd=folder,
        env={**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "BIREME_URL": url, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "the block printed nothing"


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks_marked("runnable"), ids=lambda code: code.strip().splitlines()[0])
def test_python_block_runs(code: str, open_url: str):
    run_python(code, open_url)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks_marked("served"), ids=lambda code: code.strip().splitlines()[0])
def test_shell_block_runs(code: str, open_url: str, tmp_path: Path):
    run_shell(code, open_url, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks_marked("calling"), ids=lambda code: code.strip().splitlines()[0])
def test_block_for_a_model_with_tools_runs(code: str, calling: App, tmp_path: Path):
    if "import" in code:
        # Random weights seldom end by themselves.
        asked = re.sub(r'model="[^"]+"', f'model="{CALLING}", max_tokens=64, seed=1', code)
        run_python(asked.replace("unused", KEYS[0]), calling.url)
    else:
        run_shell(code, calling.url, tmp_path, BIREME_API_KEY=KEYS[0])
