"""Bugs that other engines shipped: each patch brings one back, and the test that is named in it must fail with it.

A patch that no longer applies has to follow the code; one that no test notices means that the rule is not held any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted((Path(__file__).parent / "patches").glob("*.patch"))
AT_A_TIME = 2
COPIED = ("cluster", "actors", "gpu_ops", "tests", "pyproject.toml")


def named_test(patch: Path) -> str:
    (line,) = [line for line in patch.read_text().splitlines() if line.startswith("Test: ")]
    return line.removeprefix("Test: ")


def run_test(tree: Path, test: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120", test]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=280)


def copy_of_sources(copy: Path) -> Path:
    """What patches may change."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    return copy


def run_with_bug(trees: Queue[Path], patch: Path) -> subprocess.CompletedProcess:
    """The named test in one of the trees, which is patched meanwhile."""
    tree = trees.get()
    apply = ["git", "apply", "--unsafe-paths", "--whitespace=nowarn", str(patch)]
    how = {"cwd": tree, "check": True, "capture_output": True, "env": {**os.environ, "GIT_CEILING_DIRECTORIES": "/"}}
    try:
        subprocess.run(apply, **how)
        try:
            return run_test(tree, named_test(patch))
        finally:
            subprocess.run([*apply, "--reverse"], **how)
    finally:
        trees.put(tree)  # also where the patch does not apply: others wait for it


@pytest.fixture(scope="module")
def with_bug(tmp_path_factory, request) -> Iterator[dict[Path, Future]]:
    """How the test that each wanted patch names ends; a few run at a time, as most of a run is the start of Python and Paddle."""
    trees: Queue[Path] = Queue()
    for number in range(AT_A_TIME):
        trees.put(copy_of_sources(tmp_path_factory.mktemp("learned") / f"tree-{number}"))
    asked = [item for item in request.session.items if item.path == Path(__file__)]
    wanted = [item.callspec.params["patch"] for item in asked if hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_A_TIME) as runners:
        runs = {patch: runners.submit(run_with_bug, trees, patch) for patch in wanted}
        yield runs
        for run in runs.values():
            run.cancel()


def test_there_is_a_patch_for_every_learned_rule():
    assert len(PATCHES) == 13


@pytest.mark.slow
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_the_named_test_fails_with_the_bug(with_bug, patch):
    result = with_bug[patch].result()
    assert "1 failed" in result.stdout, f"the bug went unnoticed, or the test broke:\n{result.stdout[-3000:]}"
    assert result.returncode == 1
