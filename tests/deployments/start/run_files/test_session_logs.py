"""Logs of dead processes go, but for the newest; those of living ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.start.run_files.session_logs import remove_old_logs

pytestmark = pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="needs /proc")


def aged(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_only_the_newest_files_that_nobody_writes_to_stay(tmp_path: Path):
    dead = [aged(tmp_path / "old" / f"worker-{number}.out", 1000 + number) for number in range(5)]
    young = aged(tmp_path / "serve" / "replica_x.log", 5)
    read = aged(tmp_path / "worker-read.err", 2000)
    written = aged(tmp_path / "worker-written.err", 3000)
    others = aged(tmp_path / "python-core-worker.log", 3000)
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; file = open(sys.argv[1], 'a'); print('open', flush=True); input()", others],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"open\n"
        with open(written, "a"), open(read):
            # All seven that nobody writes to are looked at; the newest two stay, and one is too young besides.
            assert remove_old_logs(str(tmp_path), max_kept=2) == 5
            assert [path for path in (*dead, young, read, written, others) if path.exists()] == [
                dead[0],
                young,
                written,
                others,
            ]
            aged(dead[0], 10)
            assert remove_old_logs(str(tmp_path), max_kept=0) == 0, "written to less than a minute ago"
    finally:
        writer.communicate(b"\n")
    aged(others, 3000)
    with open(written, "a"):
        assert remove_old_logs(str(tmp_path), max_kept=2) == 1
    assert not others.exists(), "its writer has ended"


def test_a_folder_into_which_this_process_writes_nothing_is_left_alone(tmp_path: Path):
    file = aged(tmp_path / "notes.txt", 10_000)
    assert remove_old_logs(str(tmp_path), max_kept=0) == 0
    assert file.exists()
