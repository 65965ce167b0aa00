"""A command loads what it needs and nothing of the others, and tells programs whole lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bireme.__main__ import COMMANDS
from deployments.cli import app

ROOT = Path(__file__).resolve().parents[3]
# What takes long to load, and who may.
HEAVY = ("numpy", "pydantic", "ray", "starlette", "actors", "deployments", "prompt_toolkit", "cluster.bench")
PROGRAM = """
import sys
from bireme.__main__ import app_of
app_of({arguments})
print(*(name for name in {heavy} if name in sys.modules))
"""


def loaded(*arguments: str) -> set[str]:
    program = PROGRAM.format(arguments=list(arguments), heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_every_command_is_found_alone():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    assert set(COMMANDS) == names - {"version"}


def test_help_has_what_a_newcomer_needs_first_and_every_command_below_a_heading():
    shown = CliRunner().invoke(app, ["-h"], env={"COLUMNS": "100"}).output
    headings = re.findall(r"╭─ (.*?) ─+╮", shown)
    assert headings == ["Options", "Serve", "Models", "Look", "Ask", "Measure and plan"]
    assert re.search(r"─ Serve ─+╮\s+│ serve ", shown)


@pytest.mark.parametrize("command", ["status", "run-batch"])
def test_commands_that_ask_a_server_load_a_client_alone(command):
    assert loaded(command, "--url", "http://127.0.0.1:1") == set()


@pytest.mark.parametrize("arguments", [["models"], ["--help"]])
def test_nothing_that_looks_or_helps_loads_numpy_or_ray(arguments):
    assert not loaded(*arguments) & {"numpy", "ray", "starlette", "prompt_toolkit"}


def test_an_error_in_a_pipe_is_one_line():
    command = [sys.executable, "-m", "bireme", "status", "--url", f"http://127.0.0.1:1/{'x' * 200}"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran.stderr
