"""A signal ends the server whenever it comes, with the status that init systems expect, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployments.supervision.signals import HEED_HANGUPS, ROOT, SIGNALS, is_running, start_and_signal

# A server that is as bad as can be: a child in a session of its own that hears nothing but SIGKILL, and orphans of it.
SERVER = """
import os, subprocess, sys, time
from deployments.supervision.stages import RUNNING, STARTING
from deployments.supervision.supervisor import supervised
server = supervised()
stage, ends, folder = sys.argv[1:]
os.mkdir(folder)
server.leaves(folder)
deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; print('deaf', flush=True); time.sleep(300)"
orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True)"
if ends == "is left alone":
    subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
else:
    subprocess.run([sys.executable, "-c", orphan])
if stage != "preparing":
    server.enter(STARTING)
if stage == "running":
    server.enter(RUNNING)
print("up", flush=True)
if ends == "ends":
    server.stop.wait()
    print("words of a server that ends", flush=True)
    os._exit(0)
while True:
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        pass
"""


class Server:
    """SERVER, once it is up and its orphan is deaf."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*HEED_HANGUPS, sys.executable, "-c", SERVER, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert {self.process.stdout.readline(), self.process.stdout.readline()} == {"up\n", "deaf\n"}
        self.others = [
            int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if self._is_other(int(stat.parent.name))
        ]
        assert len(self.others) >= 2

    def _is_other(self, pid: int) -> bool:
        """Adopted ones are found by their parent, whatever their session."""
        seen = set()
        while pid not in (0, 1) and pid not in seen:
            seen.add(pid)
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                return False
            if pid == self.process.pid:
                return True
        return False

    def end(self) -> tuple[int, str]:
        """Status and what was printed."""
        printed, _ = self.process.communicate(timeout=60)
        assert not [pid for pid in self.others if is_running(pid)]
        return self.process.returncode, printed


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    yield tmp_path / "left"
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("to_group", [False, True])
def test_a_running_server_ends_in_order_with_status_0_and_one_line(folder, number, to_group):
    server = Server("running", "ends", str(folder))
    (os.killpg if to_group else os.kill)(server.process.pid, number)
    status, printed = server.end()
    assert (status, printed.count("\n")) == (0, 1)
    assert printed.startswith(f"bireme: {number.name}: stopping")


@pytest.mark.parametrize("stage", ["preparing", "starting"])
def test_a_start_is_given_up_with_the_signals_status(folder, stage):
    server = Server(stage, "stays", str(folder))
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (128 + signal.SIGTERM, "bireme: SIGTERM: the start is given up\n")


def test_a_second_signal_hurries_but_not_the_copy_that_make_passes_on(folder):
    server = Server("running", "stays", str(folder))
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    status, _ = server.end()
    assert status == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 5


def test_a_server_that_does_not_end_is_killed(folder):
    server = Server("running", "stays", str(folder))
    server.process.send_signal(signal.SIGINT)
    assert server.end()[0] == 128 + signal.SIGINT


@pytest.mark.parametrize("stage", ["starting", "preparing"])
def test_a_killed_parent_takes_the_server_along(folder, stage):
    server = Server(stage, "is left alone", str(folder))
    if stage == "preparing":
        # It has told the server to stop, and waits.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "bireme: SIGTERM: the start is given up\n"
    server.process.kill()
    deadline = time.monotonic() + 40  # eight seconds are meant
    while (folder.exists() or any(map(is_running, server.others))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in server.others if is_running(pid)]
    server.process.communicate()


@pytest.mark.slow
def test_a_real_start_can_be_given_up_at_any_moment():
    seed = random.randrange(1_000_000)
    rng = random.Random(seed)
    # In equal parts: while Python imports, while Ray starts, while Serve does.
    for earliest, latest in ((0.2, 1.5), (1.5, 5.0), (5.0, 12.0)):
        moment_s, number, to_group = rng.uniform(earliest, latest), rng.choice(SIGNALS), rng.random() < 0.5
        ended = start_and_signal(moment_s, number, to_group)
        case = f"seed {seed}: {number.name} after {moment_s:.2f} s, group {to_group}: {ended}"
        assert ended.status == 128 + number, case
        assert ended.printed == f"bireme: {number.name}: the start is given up\n", case
        assert (ended.running, ended.left) == ([], []), case
        assert ended.took_s < 10, case
