"""What a run leaves behind when it is killed: nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import subprocess, sys, time
from deployments.start.run_folder import PIDS, make_run_folder
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
