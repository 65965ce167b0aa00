"""``bireme chat`` at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.deployments.conftest import KEYS, App

ROOT = Path(__file__).resolve().parents[2]
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A person's side of a terminal in which a command runs."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # A session whose terminal this is, so that Ctrl-C becomes SIGINT.
            preexec_fn=lambda: _take_terminal(slave),
        )
        os.close(slave)
        self._received = b""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read_until(self, text: str, timeout_s: float = 60) -> str:
        """What is shown from now on until ``text``, without colours."""
        shown = ""
        deadline = time.monotonic() + timeout_s
        while text not in shown:
            if not select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0]:
                pytest.fail(f"no {text!r} after {timeout_s} s in {shown!r}")
            try:
                self._received += os.read(self._master, 65536)
            except OSError:  # what Linux says when nobody holds the other end any more
                pytest.fail(f"the command ended with {self.process.wait(10)} before {text!r}, after {shown!r}")
            shown = COLOURS.sub("", self._received.decode(errors="replace"))
        self._received = b""
        return shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def _take_terminal(slave: int) -> None:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(app: App):
    command = [sys.executable, "-m", "deployments.cli", "chat", "--url", app.url, "--temperature", "0"]
    terminal = Terminal(*command, BIREME_API_KEY=KEYS[0])
    try:
        terminal.read_until("> ")
        terminal.type("Tell me a very long story about the sea.\n")
        terminal.read_until("sea.")
        terminal.read_until("the")
        assert app.stats()["num_requests_running"] == 1
        terminal.type("\x03")
        terminal.read_until("(stopped)\r\n> ")
        app.wait_until_idle()
        terminal.type("What is the capital of France?\n")
        assert "The capital of France is Paris." in terminal.read_until("Paris.")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
