"""What Ray, Serve, HAProxy and Paddle print, in a file; a person at the terminal gets those lines of it that are ours."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from deployments.start.run_files.past_sessions import visible

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 18
# The file begins anew beyond this. Ray forwards a line for each that a worker prints, and keeps its own files of them.
MAX_BYTES = 64 << 20
_MAX_KEPT = 10
# Lines a second that are passed on, and so many at once; of a storm a person reads a count.
_LINES_PER_S = 50
_RELEVANT = 5

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EVENT = re.compile(r"^\([^)]*pid=\d+[^)]*\) (INFO|WARNING|ERROR) .* -- event=(\S+) (.*)$")
_FAULT = re.compile(r"\b(?:ERROR|FATAL|CRITICAL|[A-Z]\w*(?:Error|Exception)|Traceback|fatal|failed)\b")


def shown(line: str) -> str | None:
    """What a person at the terminal reads of ``line`` of the log: of requests what the ingress says, and of other events those
    that are no everyday ones; None if it is nothing for them."""
    found = _EVENT.match(_COLOUR.sub("", line))
    if found is None:
        return None
    level, event, fields = found.groups()
    if event == "request":
        return visible(fields)
    return None if level == "INFO" else visible(f"{level.lower()}: {event} {fields}")


class ServerLog:
    """Takes what this process and its children write to stdout and stderr.

    Attributes:
        path: of the file.
        terminal: descriptor of what was stdout.

    Args:
        folder: of the file; the newest few in it are kept.
        show: called with each line for the terminal, on a thread of its own.
        everything: all lines are for the terminal.
    """

    def __init__(self, folder: Path, show: Callable[[str], None], everything: bool = False) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        for old in sorted(folder.glob("serve-*.log"))[: 1 - _MAX_KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()
        self.path = folder / f"serve-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        self._show = show
        self._everything = everything
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        _flush()
        self.terminal, self._stderr = os.dup(1), os.dup(2)
        for output in (1, 2):
            os.dup2(self._file, output)
        self._place = 0
        self._begun = b""
        self._reading = threading.Lock()
        self._budget = LineBudget(_LINES_PER_S)
        threading.Thread(target=self._follow, daemon=True, name="server-log").start()

    @property
    def descriptors(self) -> list[int]:
        """Of the terminal, beside 1 and 2."""
        return [self.terminal, self._stderr]

    def give_back(self) -> None:
        """From now on stdout and stderr are the terminal again."""
        _flush()
        self.pass_on()
        os.dup2(self.terminal, 1)
        os.dup2(self._stderr, 2)

    def relevant_lines(self) -> list[str]:
        """The last few that tell of a fault."""
        with open(self.path, "rb") as opened:
            opened.seek(max(0, os.fstat(self._file).st_size - _CHUNK_BYTES))
            lines = opened.read().decode(errors="replace").splitlines()
        faults = (visible(_COLOUR.sub("", line)) for line in lines if _FAULT.search(line))
        return list(deque(faults, _RELEVANT))

    def pass_on(self) -> None:
        """Show what was not shown yet."""
        with self._reading:
            if os.fstat(self._file).st_size < self._place:
                self._place, self._begun = 0, b""
            while chunk := os.pread(self._file, _CHUNK_BYTES, self._place):
                self._place += len(chunk)
                *lines, self._begun = (self._begun + chunk).split(b"\n")
                for line in lines:
                    self._pass_on(line.decode(errors="replace"))
            if self._place > MAX_BYTES:
                # Those who write append, wherever its end is.
                os.ftruncate(self._file, 0)
                self._place = 0
        if left_out := self._budget.left_out():
            self._show(f"({left_out} more lines: {self.path})")

    def _pass_on(self, line: str) -> None:
        text = visible(_COLOUR.sub("", line)) if self._everything else shown(line)
        if text is not None and (self._everything or self._budget.take()):
            self._show(text)

    def _follow(self) -> None:
        while True:
            time.sleep(_POLL_S)
            with contextlib.suppress(OSError):
                self.pass_on()


class LineBudget:
    """So many lines a second.

    Args:
        per_s: and at once.
    """

    def __init__(self, per_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._now = now
        self._room = per_s
        self._at = now()
        self._left_out = 0

    def take(self) -> bool:
        """Whether there is room for one more; it is counted either way."""
        has_room = self._has_room()
        self._left_out += not has_room
        return has_room

    def _has_room(self) -> bool:
        now = self._now()
        self._room = min(self._per_s, self._room + (now - self._at) * self._per_s)
        self._at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True

    def left_out(self) -> int:
        """Lines without room since the last call that returned some; 0 while there is none for this one either."""
        if not self._left_out or not self._has_room():
            return 0
        count, self._left_out = self._left_out, 0
        return count


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
