"""``bireme serve`` that starts nothing: what prevents it is one line, which says what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from cluster.errors import BiremeError
from deployments.start.run_files.private_folder import private_base
from deployments.start.serve_config import BUILDER, serve_config
from deployments.start.serve_environment import free_port
from tests.test_docs import ROOT


def run_serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bireme", "serve", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_prevents_serving_is_one_line(tmp_path):
    no_compiler = run_serve(PATH="/nonexistent", BIREME_CACHE=str(tmp_path))
    assert (no_compiler.returncode, no_compiler.stderr.count("\n")) == (1, 1)
    assert "no C++ compiler found: install g++" in no_compiler.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_serve("--port", str(port), "--address", "local")
        unfit = run_serve("--port", str(port), "--address", "local", "--max-model-len", "100k")
    assert unfit.stderr.startswith("Error: max_model_len is 100000, this model allows at most ")
    assert (refused.returncode, refused.stderr) == (
        1,
        f"Error: port {port} is taken on this machine; choose another with --port\n",
    )


def test_keys_that_others_would_see_are_refused_by_name_with_what_to_do(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [{"import_path": BUILDER, "args": {"api_keys": ["secret"]}}]}))
    for refused in (run_serve('api_keys=["secret"]'), run_serve(str(file), "--address", "auto")):
        assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (1, 1, "")
        assert refused.stderr.startswith("Error: api_keys: ")
        assert "api_keys_file" in refused.stderr
        assert "BIREME_API_KEY" in refused.stderr
        assert "secret" not in refused.stderr
    file.write_text('applications:\n- args: {api_keys: ["secret"}\n')
    with pytest.raises(BiremeError, match=r"is not YAML: .* in line 2, column 29") as caught:
        serve_config([str(file)])
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (["--dtype", "float16", "--device", "cpu"], "dtype: the CPU computes in float32, got float16; allowed here: auto, "),
        (["dtype=bfloat16"], "dtype: the CPU computes in float32, got bfloat16; allowed here: auto, float32"),
        (["device=gpu", "runner_num_gpus=1", "dtype=float32"], "runner_num_gpus is 1, and Ray finds no GPU on this machine"),
        (["accelerator_type=H100"], "accelerator_type is H100, and Ray finds no GPU on this machine"),
        (["runner_num_cpus=256"], "runner_num_cpus is 256 and Ray counts "),
        (["num_replicas=1000000"], "deployment_config.num_replicas is 1000000 and Ray counts "),
    ],
)  # fmt: skip
def test_what_no_machine_of_this_kind_can_have_is_refused_before_ray_starts(settings, error):
    refused = run_serve("--address", "local", *settings, "--port", str(free_port()), CUDA_VISIBLE_DEVICES="")
    assert (refused.returncode, refused.stderr.startswith(f"Error: {error}")) == (1, True), refused.stderr
    assert "set-up" not in refused.stdout


def test_a_file_of_keys_that_others_may_read_prevents_serving_in_one_line(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o644)
    refused = run_serve(f"api_keys_file={keys}", "--address", "local", "--port", str(free_port()))
    assert (refused.returncode, refused.stderr) == (
        1,
        f"Error: api_keys_file: {keys} is open to other users (mode 0644): chmod 600\n",
    )


def test_keys_of_every_application_are_looked_at_before_a_start(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o644)
    names = {"a": {}, "b": {"api_keys_file": str(keys)}}
    applications = [
        {"name": name, "route_prefix": f"/{name}", "import_path": BUILDER, "args": args} for name, args in names.items()
    ]
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": applications}))
    refused = run_serve(str(file), "--address", "local", "--port", str(free_port()))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"{keys} is open to other users" in refused.stderr


def test_another_users_folder_in_the_place_of_ours_prevents_serving_in_one_line(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        taken = Path(parent, private_base().name)
        taken.mkdir()
        taken.chmod(0o777)
        refused = run_serve("--address", "local", "--port", str(free_port()), RAY_TMPDIR=parent)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {taken} is open to other users (mode 0777); ")
    assert refused.stderr.count("\n") == 1
