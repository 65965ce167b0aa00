"""The project as a wheel in an environment of its own, used from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bireme.__main__ import PACKAGES

ROOT = Path(__file__).resolve().parents[3]

LOOK = """
import os
from actors.scheduling import step_rows
from deployments.start.serve_config import named_configs, serve_config
from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK
from gpu_ops.sources import CSRC
model = serve_config(["llama_8b_gpu"])["applications"][0]["args"]["model"]
sources = HAPROXY_ON_LOOPBACK.with_name("haproxy_packing.awk"), step_rows.SOURCE
print(named_configs(), os.path.isfile(model), os.access(HAPROXY_ON_LOOPBACK, os.X_OK), *(path.is_file() for path in sources))
print(CSRC)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """With the wheel, and the dependencies of this one, but not its project."""
    folder = tmp_path_factory.mktemp("installed")
    for name in (*PACKAGES, "bireme", "ray_configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run(wheel, check=True, capture_output=True)
    shutil.rmtree(folder / "source")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(built)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # A plain path: the file of this environment that leads to the checkout is not read there.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment


def run(environment: Path, cwd: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("RAY_")}
    program = environment / "bin" / command[0]
    return subprocess.run(
        [str(program), *command[1:]],
        cwd=cwd,
        env={**kept, "COLUMNS": "500", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_installed_wheel_has_all_that_a_server_needs(environment, tmp_path):
    ran = run(environment, tmp_path, "python", "-c", LOOK)
    found, _, sources = ran.stdout.strip().partition("\n")
    assert found == "['llama_8b_gpu', 'smollm2_cpu', 'smollm2_gpu'] True True True True", ran.stderr
    assert Path(sources).is_relative_to(environment)
    # Without it a type checker takes a package of an environment for untyped, and what comes from it for anything.
    typed = {path.parent.name for path in environment.glob("lib/python*/site-packages/*/py.typed")}
    assert typed >= {*PACKAGES, "bireme"}
    ours = ROOT / "gpu_ops" / "csrc"
    assert {path.relative_to(ours) for path in ours.rglob("*")} == {
        path.relative_to(sources) for path in Path(sources).rglob("*")
    }
    started = run(environment, tmp_path, "bireme", "serve", "smollm2_cpu", "--host", "192.0.2.77")
    assert started.stderr == "Error: host '192.0.2.77' is no address of this machine; choose another with --host\n"
    unknown = run(environment, tmp_path, "bireme", "serve", "smollm3")
    assert unknown.stderr.startswith("Error: 'smollm3' is neither a file, nor the name of a config (llama_8b_gpu, ")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_stranger_of_our_name_is_named_even_if_it_comes_first(environment, tmp_path, name):
    stranger = tmp_path / name
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise RuntimeError('a stranger was imported')")
    for command in (["serve"], ["version"]):
        ran = run(environment, environment, "bireme", *command, PYTHONPATH=str(tmp_path))
        assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
        assert ran.stderr.startswith(f"Error: Python finds another {name} in {stranger} before that of Bireme in ")
