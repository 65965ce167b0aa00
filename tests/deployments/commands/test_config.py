"""``bireme config check``."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from tests.engines import TINY_CONFIG, write_quantised_model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    return str(tmp_path)


def test_a_plan_is_shown_without_weights_or_a_server(folder):
    settings = [
        "num_kv_blocks=64",
        "max_model_len=64",
        "--max-num-seqs",
        "4",
        "--data-parallel-size",
        "3",
        "device=cpu",
        "--port",
        "8001",
    ]
    shown = CliRunner().invoke(app, ["config", "check", folder, *settings])
    assert shown.exit_code == 0, shown.output
    assert "engines    3, each on one CPU" in shown.output
    assert " of float32: 64 blocks of 16 tokens" in shown.output
    assert "streams    4 × 64 tokens, of at most 4 at once" in shown.output


def test_sixty_columns_break_a_plan_between_words(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    arguments = ["-m", "deployments.cli", "config", "check", folder, "device=cpu", "max_model_len=64"]
    lines = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60).stdout.split("\n")
    assert any(line.startswith("KV cache") for line in lines)
    assert any(line.startswith(" " * 11) for line in lines)
    assert all(len(line) <= 60 for line in lines if folder not in line)


def test_weights_count_as_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr("deployments.commands.config._GIB", 2**20)
    file = str(write_quantised_model(tmp_path))

    def weights(*settings: str) -> float:
        shown = CliRunner().invoke(app, ["config", "check", file, "num_kv_blocks=64", "device=cpu", *settings])
        assert shown.exit_code == 0, shown.output
        (line,) = [line for line in shown.output.splitlines() if line.startswith("weights ")]
        return float(line.split()[1])

    assert 0 < weights() == weights("weight_format=stored") < 0.6 * weights("weight_format=float32")


def test_a_plan_shows_what_another_type_of_the_kv_cache_holds(folder):
    settings = ["kv_cache_memory_gb=0.0001", "max_num_seqs=64", "device=cpu"]
    blocks = {}
    for dtype in ("float32", "bfloat16", "int8"):
        shown = CliRunner().invoke(app, ["config", "check", folder, *settings, "--kv-cache-dtype", dtype])
        assert shown.exit_code == 0, shown.output
        blocks[dtype] = int(re.search(rf"of {dtype}: ([\d,]+) blocks", shown.output)[1].replace(",", ""))
    assert blocks["float32"] < blocks["bfloat16"] < blocks["int8"]


def test_settings_that_do_not_fit_the_model_are_refused_in_one_line(folder):
    shown = CliRunner().invoke(app, ["config", "check", folder, "--max-model-len", "1000000", "device=cpu"])
    assert shown.exit_code == 1
    assert shown.stderr.startswith("Error: max_model_len is 1000000, this model allows at most ")
    shown = CliRunner().invoke(app, ["config", "check", folder, "--device", "cpu", "--gpu-gib", "80"])
    assert (shown.exit_code, shown.stderr) == (1, "Error: --gpu-gib: device is cpu\n")
