"""``bireme models``, ``pull`` and ``rm``, on a cache of the test's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from actors.model_files.kept import KeptModel, remove
from cluster.config import DEFAULT_MODEL
from cluster.errors import BiremeError
from deployments.cli import app
from tests.terminal import Terminal


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    cache = tmp_path / "cache"
    for folder, num_bytes in (("models/" + DEFAULT_MODEL, 3_000_000), ("ready_weights", 2_000_000)):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "file").write_bytes(bytes(num_bytes))
    monkeypatch.setenv("BIREME_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--owner--some--name" / "blobs"
    snapshot.mkdir(parents=True)
    (snapshot / "x").write_bytes(b"12345")
    return cache


def run(*arguments: str, **options):
    return CliRunner(env={"COLUMNS": "500"}).invoke(app, list(arguments), **options)


def test_what_is_kept_is_listed_with_its_size(cache):
    rows = json.loads(run("models", "--json").output)
    assert [(row["name"], row["bytes"]) for row in rows] == [
        ("owner/some--name", 5),
        (DEFAULT_MODEL, 3_000_000),
        ("ready-weights", 2_000_000),
    ]
    assert "3.0 MB" in run("models").output


def test_rm_asks_removes_what_it_names_and_nothing_else(cache):
    asked = run("rm", DEFAULT_MODEL, input="y\n")
    assert asked.exit_code == 1
    assert "add --yes" in asked.stderr
    assert (cache / "models" / DEFAULT_MODEL / "file").exists()
    assert run("rm", DEFAULT_MODEL, "--yes").exit_code == 0
    assert not (cache / "models" / DEFAULT_MODEL).exists()
    assert (cache / "ready_weights" / "file").exists()
    assert run("rm", "ready-weights", "--yes").exit_code == 0
    assert not (cache / "ready_weights").exists()
    near = run("rm", "owner/some-name", "--yes")
    assert (near.exit_code, "did you mean owner/some--name?" in near.stderr.replace("\n", " ")) == (1, True)


def test_at_a_terminal_rm_waits_for_an_answer(cache):
    command = [sys.executable, "-m", "deployments.cli", "rm", "ready-weights"]
    for answer, is_there in (("n", True), ("y", False)):
        terminal = Terminal(*command, BIREME_CACHE=str(cache), COLUMNS="500")
        try:
            terminal.read_until("(2.0 MB)? [y/N]: ")
            assert (cache / "ready_weights" / "file").exists()
            terminal.type(answer + "\r")
            terminal.process.wait(30)
        finally:
            terminal.close()
        assert (cache / "ready_weights").exists() == is_there


@pytest.mark.parametrize("name", ["..", "../..", "/etc", ".", ""])
def test_rm_removes_nothing_outside_the_cache(cache, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    assert run("rm", "--yes", "--", name).exit_code == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("dear")
    (cache / "models" / "link").symlink_to(elsewhere)
    assert run("rm", "link", "--yes").exit_code == 1
    assert (elsewhere / "file").read_text() == "dear"
    assert set(before) <= set(tmp_path.rglob("*"))


def test_pull_says_that_a_model_is_here_or_why_not(cache, tmp_path):
    model = tmp_path / "own"
    model.mkdir()
    failed = run("pull", str(model))
    assert failed.exit_code == 1
    assert "neither config.json nor a GGUF file" in failed.stderr.replace("\n", " ")


def test_a_path_that_leads_out_of_its_cache_is_not_removed(cache, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (cache / "models" / "link").symlink_to(elsewhere)
    for path in (cache / "models" / "link", cache / "models" / "..", cache / "models" / ".." / ".." / "elsewhere"):
        with pytest.raises(BiremeError, match="is a link out of the cache"):
            remove(KeptModel("x", 0, path, cache / "models"))
    assert elsewhere.is_dir()
    assert cache.is_dir()
