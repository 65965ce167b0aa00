"""Commands of the pages that need no server run in a folder with small files. ``bireme serve`` runs as ``bireme config
check``, which takes the same and starts nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from deployments.cli import app
from deployments.start.serve_config import BUILDER
from tests.cluster.scaling.test_log import recorded
from tests.page_files import write_page_files
from tests.test_docs import ROOT, blocks, blocks_marked, shown_block

_OF_ANOTHER_MACHINE = "--gpu-gib plans for another machine's"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (serve_yaml,) = (text for mark, _, text in blocks(ROOT / "docs/ray_serve_llm.md") if mark == "config")
    variables = write_page_files(tmp_path, serve_yaml, recorded())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", variables["HF_HUB_CACHE"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    # As wide as a page, and the machine that the pages speak of.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("deployments.commands.config.ray_cpus", lambda: 2)
    monkeypatch.setattr("deployments.commands.config.usable_memory", lambda: int(23.5 * 2**30))
    return tmp_path


def bireme_arguments(words: list[str]) -> list[str] | None:
    """Of a command that is ours, or that serves what ours would; None of others."""
    program, *rest = words
    if Path(program).name == "bireme":
        return ["config", "check", *rest[1:]] if rest[0] == "serve" else rest
    if words[:2] == ["make", "serve"]:
        return ["config", "check", *(word.removeprefix("CONFIG=") for word in rest[1:])]
    if Path(program).name == "serve" and rest[:2] == ["run", BUILDER]:
        return ["config", "check", *rest[2:]]
    return None


def invoke(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exit_code and _OF_ANOTHER_MACHINE in result.output:
        result = CliRunner().invoke(app, [*arguments, "--gpu-gib", "80"])
    assert result.exit_code == 0, f"{arguments}: {result.output}"
    return result.stdout


@pytest.mark.parametrize("code", blocks_marked("alone"), ids=lambda code: code.strip().splitlines()[0])
def test_commands_run(code: str, folder: Path) -> None:
    num_run = 0
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("$PWD", str(folder)), comments=True)
        if not words:
            continue
        arguments = bireme_arguments(words)
        if arguments is None:
            subprocess.run(["bash", "-euc", line], check=True, capture_output=True, timeout=60)
        else:
            assert invoke(arguments).strip(), f"{line} printed nothing"
        num_run += 1
    assert num_run


def test_the_plan_of_the_page_is_what_is_printed(folder: Path) -> None:
    command, *shown = shown_block("docs/terminal.md", __file__).splitlines()
    assert command.startswith("$ bireme config check ")
    assert invoke(shlex.split(command)[2:]).splitlines() == shown
    assert os.getcwd() == str(folder)
