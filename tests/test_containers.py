"""The Dockerfiles and the workflow, which nothing here runs: what they name is there, and means what they take it for."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deployments.start.serve_config import configured_model, serve_config

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]
KNOWN = {
    *("FROM", "RUN", "WORKDIR", "USER", "ENV", "COPY"),
    *("EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD", "VOLUME"),
}


def instructions(name: str) -> dict[str, list[str]]:
    """What follows each instruction, continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            found.setdefault(word, []).append(rest)
    return found


def ordered(name: str) -> list[tuple[str, str]]:
    """As scripts/try_image.py carries them out."""
    return script("try_image").instructions(ROOT / name)


def bases() -> dict[str, Any]:
    return script("try_image").BASES


@cache
def script(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))  # where its own imports lie
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_step_of_an_image_is_one_that_can_run(name: str):
    """In their order: whoever a step names was made before it, a shell can read it, and what it installs is what is supported."""
    allowed = {found.name: found.specifier for found in map(Requirement, requires("bireme") or ())}
    users, packages = {"root"}, set()
    for word, rest in ordered(name):
        assert word in KNOWN, f"{word} is no instruction that scripts/try_image.py carries out"
        if word == "FROM":
            assert rest in bases(), "a base that scripts/try_image.py cannot make"
        elif word == "RUN":
            subprocess.run(["sh", "-n"], input=rest, text=True, check=True)
            users |= set(re.findall(r"useradd .*?(\w+)$", rest))
            for installed in re.findall(r"apt-get install(?: -\S+)* ([^&]+)", rest):
                packages |= {*installed.split()}
            for pinned in re.findall(r"'([\w-]+==[^']+)'", rest):
                wanted = Requirement(pinned)
                (version,) = (str(each.version).replace("*", "4") for each in wanted.specifier)
                assert allowed[wanted.name].contains(version), pinned
        elif word in ("USER", "COPY"):
            named = re.findall(r"--chown=(\w+)", rest) if word == "COPY" else [rest]
            assert {*named} <= users, f"{word} {rest}: nobody has made that user"
    assert {"g++", "make"} <= packages
    # What the build takes along: neither an environment of this machine nor what was built here.
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", "build", ".git"} <= {path.strip("/") for path in ignored}


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
