"""The Dockerfiles and the workflow, which nothing here runs: what they name is there, and means what they take it for."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.start.serve_config import configured_model, serve_config

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]


def instructions(name: str) -> dict[str, list[str]]:
    """What follows each instruction, continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            found.setdefault(word, []).append(rest)
    return found


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_made_and_started_with_what_there_is(name: str):
    found = instructions(name)
    makes = [words[1] for line in found["RUN"] if (words := shlex.split(line))[0] == "make"]
    assert set(makes) <= targets()
    for extra in re.findall(r"-e '\.\[(\w+)\]'", " ".join(found["RUN"])):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    ((program, command, *options),) = map(json.loads, found["ENTRYPOINT"])
    assert (program, command, options) == (".venv/bin/bireme", "serve", ["--host", "0.0.0.0"])
    (served,) = map(json.loads, found["CMD"])
    config = serve_config(served, options[1])
    assert config["http_options"]["port"] == int(found["EXPOSE"][0])
    assert (configured_model(config).device == "gpu") == name.endswith("gpu")
    (check,) = found["HEALTHCHECK"]
    (python, flag, code) = json.loads(check.partition(" CMD ")[2])
    assert (python, flag, code.count(f":{config['http_options']['port']}/health")) == ("python3", "-c", 1)
    ast.parse(code)
    assert found["STOPSIGNAL"] == ["SIGTERM"]


def test_the_workflow_runs_the_check_and_lint():
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert sorted(step["run"] for step in steps if "run" in step) == [".ci/run", "make lint"]
    assert "lint" in targets()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    # Where several Pythons are set up, .venv has the one that is meant, and those of `make versions` are there.
    setups = [step["with"] for step in steps if "setup-python" in step.get("uses", "")]
    assert {with_["python-version"].split()[-1] for with_ in setups} == {
        workflow["env"]["PYTHON"].removeprefix("python")
    }
    tried = re.findall(r'"(3\.\d+)"', re.search(r"^PYTHONS = .*$", (ROOT / "scripts/versions.py").read_text(), re.M)[0])
    assert any({*tried} < {*with_["python-version"].split()} for with_ in setups)
    assert all((ROOT / with_["cache-dependency-path"]).exists() for with_ in setups)


def test_an_image_is_tried_only_where_all_is_there(tmp_path):
    (tmp_path / "a file").touch()
    for options, said in ([], "an empty folder"), (["--only", "server"], "leave out --only server"):
        command = [sys.executable, ROOT / "scripts/try_image.py", tmp_path, *options]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
        assert ran.stderr.startswith("missing: ")
        assert said in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]
