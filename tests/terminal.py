"""A terminal in which a command runs, and a person's side of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A person's side of a terminal in which a command runs."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            # A session whose terminal this is, so that Ctrl-C becomes SIGINT; no ``preexec_fn``, which needs room for a fork.
            ["setsid", "--ctty", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._received = b""

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read_until(self, text: str, timeout_s: float = 60) -> str:
        """What is shown from where the last call ended up to ``text``, without colours and moves of the cursor."""
        shown = self._shown()
        deadline = time.monotonic() + timeout_s
        while text not in shown:
            if not select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0]:
                pytest.fail(f"no {text!r} after {timeout_s} s in {shown!r}")
            try:
                self._received += os.read(self._master, 65536)
            except OSError:  # what Linux says when nobody holds the other end any more
                pytest.fail(f"the command ended with {self.process.wait(10)} before {text!r}, after {shown!r}")
            shown = self._shown()
        end = shown.index(text) + len(text)
        self._received = shown[end:].encode()
        return shown[:end]

    def _shown(self) -> str:
        return SEQUENCES.sub("", self._received.decode(errors="replace"))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
