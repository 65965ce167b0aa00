"""Signals at random moments of a start: ``python -m tests.deployments.supervision.signals --times 30`` prints what each saw."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deployments.start.serve_environment import free_port
from deployments.supervision.process_tree import descendants

ROOT = Path(__file__).resolve().parents[3]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Where the tests run under nohup, what they start is not to. Not in ``preexec_fn``: a large pytest may have no room to fork.
HEED_HANGUPS = ("env", "--default-signal=HUP")


@dataclass
class Ended:
    """What a signal led to.

    Attributes:
        took_s: from the signal to the end of the process.
        running: processes of the server that still run.
        left: files, folders and sockets that are left, but for Ray's logs and the folders that they lie in.
        printed: on the terminal, from the signal on.
    """

    status: int
    took_s: float
    running: list[int]
    left: list[str]
    printed: str


def start_and_signal(moment_s: float, number: signal.Signals, to_group: bool) -> Ended:
    """Start a server, and give it or its process group a signal ``moment_s`` later."""
    folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "t")}
    (folder / "t").mkdir()
    try:
        with open(folder / "log", "ab") as output:
            server = subprocess.Popen(
                [*HEED_HANGUPS, sys.executable, "-m", "bireme", "serve", "--port", str(free_port())],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        time.sleep(moment_s)
        started = descendants(server.pid)
        before = len((folder / "log").read_bytes())
        begun = time.monotonic()
        (os.killpg if to_group else os.kill)(server.pid, number)
        status = server.wait(60)
        took_s = time.monotonic() - begun
        running = [pid for pid in started if is_running(pid)]
        printed = (folder / "log").read_bytes()[before:].decode(errors="replace")
        return Ended(status, took_s, running, leftovers(folder / "t"), printed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(folder: Path) -> list[str]:
    """What Ray and we make to be kept are a session's logs and two files that name the newest session."""
    kept = {"session_latest", "prom_metrics_service_discovery.json"}
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "logs" not in path.parts and path.name not in kept and (path.is_socket() or not path.is_dir())
    ]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds after the start")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    for _ in range(arguments.times):
        moment_s, number, to_group = rng.uniform(0.15, arguments.longest), rng.choice(SIGNALS), rng.random() < 0.5
        ended = start_and_signal(moment_s, number, to_group)
        what = "group" if to_group else "process"
        print(f"{moment_s:5.2f} s {number.name:7} {what:7} {ended}", flush=True)


if __name__ == "__main__":
    main()
