"""The project's log lines are shown, whatever an import does to the root logger."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import logging
before = logging.getLogger().handlers[:], logging.getLogger().level
from cluster.logs import show_logs
show_logs()
show_logs()
assert (logging.getLogger().handlers, logging.getLogger().level) == before
{first}
logging.getLogger("bireme.engine").info("step one")
logging.getLogger("bireme.runner").debug("too much")
logging.getLogger("someone.else").info("not ours")
"""


@pytest.mark.parametrize("first", ["import paddle", "logging.getLogger().setLevel(logging.WARNING)"])
def test_lines_of_the_project_are_shown_once_and_the_root_logger_is_left_alone(first):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stderr.splitlines() if "bireme" in line or "someone" in line]
    assert len(ours) == 1
    assert ours[0].endswith("bireme.engine INFO step one")
