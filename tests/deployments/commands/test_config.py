"""``bireme config check``."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.start.serve_config import BUILDER
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


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (["dtype=bfloat16", "device=cpu"], "dtype: the CPU computes in float32, got bfloat16; allowed here: auto, float32\n"),
        (["dtype=float32", "--gpu-gib", "80"], "dtype: a GPU computes in bfloat16 or float16, got float32; allowed here: auto, "),
        (["generation_config=/nonexist", "device=cpu"], "generation_config is '/nonexist'; allowed: auto, none, or a directory "),
    ],
)  # fmt: skip
def test_what_the_device_or_the_disk_does_not_have_is_refused_as_a_server_would(folder, settings, error):
    result = CliRunner().invoke(app, ["config", "check", folder, *settings])
    assert (result.exit_code, result.stderr.startswith(f"Error: {error}")) == (1, True), result.stderr


def shown(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["config", "check", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.fixture
def small_machine(monkeypatch):
    """Four CPUs and 10 MiB, so that tiny engines can be too many."""
    monkeypatch.setattr("deployments.commands.config.ray_cpus", lambda: 4)
    monkeypatch.setattr("deployments.commands.config.usable_memory", lambda: 10 << 20)


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (["num_replicas=2"], None),
        (["num_replicas=4", "runner_num_cpus=1.5"], "deployment_config.num_replicas is 4: 2 fit on this machine, by CPUs"),
        (["num_replicas=20", "runner_num_cpus=4"], "deployment_config.num_replicas is 20: none fits on this machine, by CPUs"),
        (["autoscaling.max_replicas=9", "runner_num_cpus=0.1"], "autoscaling.max_replicas is 9: 4 fit on this machine"),
        (
            ["deployment_config.autoscaling_config.max_replicas=9", "runner_num_cpus=0.1"],
            "deployment_config.autoscaling_config.max_replicas is 9: 4 fit on this machine, by memory (kv_cache_memory_gb:",
        ),
        (["num_replicas=9", "num_kv_blocks=512", "runner_num_cpus=0.1"], ", by memory (num_kv_blocks:"),
    ],
)  # fmt: skip
def test_engines_that_this_machine_cannot_have_are_named_by_their_settings(folder, small_machine, settings, warning):
    lines = shown(folder, "device=cpu", "kv_cache_memory_gb=0.002", *settings)
    warnings = [line for line in lines if line.startswith("warning")]
    assert bool(warnings) == (warning is not None)
    if warning is not None:
        assert warning in warnings[0]
    (line,) = [line for line in lines if line.startswith("together")]
    assert "of 0.0 GiB" in line
    assert "of 4 CPUs reserved" in line


def config_file(tmp_path, *applications: dict) -> str:
    file = tmp_path / "serve.yaml"
    rows = [
        {"name": f"a{number}", "route_prefix": f"/a{number}", "import_path": BUILDER, **one}
        for number, one in enumerate(applications)
    ]
    file.write_text(json.dumps({"applications": rows}))
    return str(file)


def test_all_applications_of_a_file_are_planned_and_share_the_machine(tmp_path, folder, small_machine):
    args = {"model": folder, "device": "cpu", "kv_cache_memory_gb": 0.002, "runner_num_cpus": 0.1}
    engines = [{"name": "LLMServer", "num_replicas": 3}]
    other = {"import_path": "somebody.else:app"}
    file = config_file(
        tmp_path,
        {"args": args, "deployments": engines},
        other,
        {"args": {**args, "deployment_config": {"num_replicas": 2}}},
    )
    lines = shown(file)
    assert [line for line in lines if line.startswith("application")] == ["application a0", "application a2"]
    assert sum(line.startswith("streams") for line in lines) == 2
    assert any(line.startswith("together   5 engines: ") for line in lines)
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "deployment_config.num_replicas of a2 is 2: 1 fits on this machine beside a0, by memory" in warning
    # The first alone is one too many for no machine of this size, and what the file says of deployments counts.
    engines[0]["num_replicas"] = 5
    lines = shown(config_file(tmp_path, {"args": args, "deployments": engines}))
    assert "deployments[0].num_replicas is 5: 4 fit on this machine, by memory" in lines[-1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_fault_of_any_application_is_one_line_with_its_name(tmp_path, folder, number):
    good, bad = {"args": {"model": folder}}, {"args": {"model": folder, "max_num_seqs": 0}}
    result = CliRunner().invoke(
        app, ["config", "check", config_file(tmp_path, *([bad, good] if number == 0 else [good, bad]))]
    )
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: application a{number}: max_num_seqs: must be at least 1, got 0\n",
    )


def test_gpus_are_counted_and_shared(tmp_path, folder, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, "hidden_size": 128, "head_dim": 64}))
    monkeypatch.setattr("deployments.commands.config.gpu_memory", lambda: [(40 << 30, 40 << 30)] * 2)
    monkeypatch.setattr("deployments.commands.config.ray_cpus", lambda: 64)
    common = folder, "device=gpu", "block_size=64", "num_replicas=4"
    assert "num_replicas is 4: 2 fit on this machine, by GPUs (an engine takes 1 of 2)" in shown(*common)[-1]
    # Two halves of a GPU are no two engines where the first takes nine tenths of its memory.
    assert (
        "4: 2 fit on this machine, by a GPU's memory (gpu_memory_utilization"
        in shown(*common, "runner_num_gpus=0.5")[-1]
    )
    assert shown(*common, "runner_num_gpus=0.5", "num_kv_blocks=64", "gpu_memory_utilization=0.4")[-1].startswith(
        "together   4 engines: 2 of 2 GPUs"
    )


@pytest.mark.parametrize("settings", [["runner_num_gpus=0"], ["device=simulated"]])
def test_an_engine_that_ray_shows_no_gpu_is_planned_for_the_cpu(folder, monkeypatch, settings):
    monkeypatch.setattr("deployments.commands.config.gpu_memory", lambda: [(40 << 30, 40 << 30)])
    lines = shown(folder, "num_kv_blocks=64", *settings)
    assert any(line.startswith("engines    1, each on one CPU") for line in lines)
    refused = CliRunner().invoke(app, ["config", "check", folder, "--gpu-gib", "80", *settings])
    assert refused.stderr.startswith("Error: --gpu-gib: ")


def test_no_share_of_a_gpu_bounds_nothing(tmp_path, folder, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, "hidden_size": 128, "head_dim": 64}))
    monkeypatch.setattr("deployments.commands.config.gpu_memory", lambda: [(40 << 30, 40 << 30)])
    lines = shown(folder, "device=gpu", "block_size=64", "runner_num_gpus=0")
    assert lines[-1].startswith("together   1 engine: 0 of 1 GPUs")


def test_parts_of_gpus_are_taken_from_the_fullest(tmp_path, folder, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, "hidden_size": 128, "head_dim": 64}))
    monkeypatch.setattr("deployments.commands.config.gpu_memory", lambda: [(40 << 30, 40 << 30)] * 2)
    monkeypatch.setattr("deployments.commands.config.ray_cpus", lambda: 64)
    args = {"model": folder, "device": "gpu", "block_size": 64, "num_kv_blocks": 64, "gpu_memory_utilization": 0.4}

    def last(*applications: tuple[float, int]) -> str:
        rows = [
            {"args": {**args, "runner_num_gpus": share, "deployment_config": {"num_replicas": count}}}
            for share, count in applications
        ]
        return shown(config_file(tmp_path, *rows))[-1]

    assert last((0.5, 1), (0.5, 3)).startswith("together   4 engines: 2 of 2 GPUs")
    assert "of a1 is 4: 3 fit on this machine beside a0, by GPUs" in last((0.5, 1), (0.5, 4))
    assert "of a1 is 2: 1 fits on this machine beside a0, by GPUs" in last((0.5, 1), (1, 2))


def test_what_a_file_says_of_deployments_is_checked_and_counts(tmp_path, folder, small_machine):
    args = {"model": folder, "device": "cpu", "kv_cache_memory_gb": 0.0001, "runner_num_cpus": 0.1}
    engines = {"name": "LLMServer", "num_replicas": 3, "ray_actor_options": {"num_cpus": 2}}
    assert (
        "deployments[0].num_replicas is 3: 1 fits on this machine, by CPUs"
        in shown(config_file(tmp_path, {"args": args, "deployments": [engines]}))[-1]
    )
    for wrong, said in (
        ([{"name": "LLMServer", "autoscaling_config": {"max_replicas": "x"}}], "deployments[0].autoscaling_config.max_"),
        ([{"name": "LLMServer", "num_replicas": "x"}], "deployments[0].num_replicas must be an integer, got 'x'"),
        ({"name": "LLMServer"}, "deployments: must be a list of mappings"),
    ):  # fmt: skip
        file = config_file(tmp_path, {"args": args, "deployments": wrong})
        result = CliRunner().invoke(app, ["config", "check", file])
        assert (result.exit_code, result.stderr.startswith(f"Error: {said}")) == (1, True), result.output


def test_a_number_of_replicas_that_serve_would_not_heed_is_refused(tmp_path, folder, small_machine):
    args = {"model": folder, "device": "cpu", "kv_cache_memory_gb": 0.0001, "runner_num_cpus": 0.1}
    fixed = {"ingress_config": {"num_replicas": 1}}
    scaling = {"deployment_config": {"autoscaling_config": {"max_replicas": 2}}}
    for name, more, why in (
        ("OpenAiIngress", {}, "the number of ingresses follows the load"),
        ("OpenAiIngress", fixed, ""),
        ("LLMServer", scaling, "deployment_config has an autoscaling_config"),
        ("LLMServer", {"autoscaling": {"max_replicas": 2}}, "autoscaling says how many engines there are"),
        ("LLMServer", {}, ""),
    ):
        for null in ({}, {"autoscaling_config": None}):
            deployments = [{"name": name, "num_replicas": 2, **null}]
            file = config_file(tmp_path, {"args": {**args, **more}, "deployments": deployments})
            result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["config", "check", file])
            is_refused = bool(why) and not null
            assert result.exit_code == is_refused, result.output
            said = f"Error: deployments[0].num_replicas: Ray Serve ignores it, because {why}; with autoscaling_config: null"
            assert result.stderr.startswith(said) == is_refused
