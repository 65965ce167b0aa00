"""What a run leaves behind when it is killed: nothing."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster.errors import BiremeError
from deployments.replica.token_socket import _LONGEST_BASE
from deployments.start.run_files.private_folder import private_base
from deployments.start.run_files.run_folder import make_run_folder

SCRIPT = """
import subprocess, sys, time
from deployments.start.run_files.run_folder import PIDS, make_run_folder
folder = make_run_folder()
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
ours = subprocess.Popen([*sleep, str(folder / "haproxy.cfg")])
other = subprocess.Popen(sleep)
for process in (ours, other):
    (folder / PIDS / str(process.pid)).touch()
print(folder, ours.pid, other.pid, flush=True)
time.sleep(300)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("length", [10, 11, 12, 22, 26, 27, 30, 200])
def test_sockets_have_room_however_long_the_path_of_temporary_files_is(length, monkeypatch):
    """HAProxy takes 97 characters, the kernel 107."""
    parent = Path("/tmp", secrets.token_hex(100)[: length - len("/tmp/")])
    parent.mkdir()
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(parent))
        folder = make_run_folder()
        assert len(str(folder / ("0" * 56) / "metrics.sock")) <= 97
        assert folder.parent == (parent if length <= 11 else Path("/tmp"))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert len(str(private_base(longest=_LONGEST_BASE) / "t-41bd335d-qccq7yzo" / "s")) <= 107
        session = "ray/session_2026-11-28_12-34-56_123456_1234567/sockets/dash_MetricsHead"
        assert len(str(private_base(str(parent)) / session)) <= 107
        shutil.rmtree(folder)
    finally:
        shutil.rmtree(parent)


def test_where_nothing_can_be_written_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")
    with pytest.raises(BiremeError, match=r"no folder for sockets can be made: .* set TMPDIR to a folder"):
        make_run_folder()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_killed_run_takes_its_listed_processes_along_and_no_others():
    run = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    folder, ours, other = run.stdout.readline().split()
    try:
        assert is_running(int(ours))
        run.kill()
        run.wait()
        deadline = time.monotonic() + 10
        while (is_running(int(ours)) or Path(folder).exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(int(ours))
        assert not Path(folder).exists()
        assert is_running(int(other)), "an id that became another process's"
    finally:
        subprocess.run(["kill", "-9", other, ours], check=False, stderr=subprocess.DEVNULL)
