"""Completion in a shell, as the shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("bireme run", "run-batch"),
        ("bireme ben", "bench"),
        ("bireme serve --max-num-s", "--max-num-seqs"),
        ("bireme bench --request-r", "--request-rate"),
    ],
)
def test_commands_and_settings_are_offered(typed, offered):
    environment = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_BIREME_COMPLETE": "complete_bash"}
    program = "import sys; sys.argv = ['bireme']; from deployments.cli import app; app(prog_name='bireme')"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout.split() == [offered], ran.stderr
