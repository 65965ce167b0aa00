"""Run ``pip install`` with one line of progress instead of a screen of names."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

BIG_MB = 20  # downloads worth a line of their own where the output is a file


class PipError(RuntimeError):
    """pip failed; the message holds the end of its own output and what to do."""


class Status:
    """One line that is rewritten in place on a terminal; elsewhere only ``note`` prints."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._text = ""
        self._start = time.monotonic()
        self._done = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        if self._is_terminal:
            self._ticker.start()

    def set(self, text: str) -> None:
        self._text = text

    def note(self, text: str) -> None:
        if not self._is_terminal:
            print(f"  {text}", flush=True)

    def close(self) -> None:
        self._done.set()
        if self._is_terminal:
            self._ticker.join()
            print("\r\x1b[K", end="", flush=True)

    def _tick(self) -> None:
        while not self._done.wait(0.2):
            print(f"\r\x1b[K  {self._text}  {time.monotonic() - self._start:.0f} s", end="", flush=True)


def install(python: Path, arguments: list[str], quiet: bool = False) -> None:
    """Run ``python -m pip install`` with ``arguments``.

    Args:
        quiet: print no notes; for steps of a second or two.
    Raises:
        PipError: pip failed.
    """
    command = [str(python), "-m", "pip", "install", "--progress-bar", "raw", "--disable-pip-version-check", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    status, lines = Status(), []
    try:
        for line in process.stdout:
            if not line.startswith("Progress "):
                lines.append(line)
            _report(line, status, quiet)
        failed = process.wait()
    finally:
        status.close()
        if process.poll() is None:
            process.terminate()
            process.wait()
    if failed:
        raise PipError(
            f"{''.join(lines[-15:])}Installing the dependencies failed (pip's last lines are above). "
            "If this was the network, run the same command again."
        )


def _report(line: str, status: Status, quiet: bool) -> None:
    if found := re.match(r"Collecting (\S+)", line):
        status.set(f"looking at {found[1]}")
    elif found := re.match(r"\s+(?:Downloading|Using cached) ([^-\s]+)-(\S+?)-\S+ \(([\d.]+) (\S+)\)", line):
        name, version, size, unit = found.groups()
        status.set(f"{line.split()[0].lower()} {name} {version} ({size} {unit})")
        if not quiet and unit == "MB" and float(size) >= BIG_MB:
            status.note(f"{line.split()[0].lower()} {name} {version} ({size} MB)")
    elif found := re.match(r"Installing collected packages: (.*)", line):
        count = len(found[1].split(", "))
        status.set(f"unpacking {count} packages")
        if not quiet:
            status.note(f"unpacking {count} packages")
