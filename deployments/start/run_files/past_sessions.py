"""The Ray sessions that this user's servers have had on this machine, and what their logs say."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

_ADDRESS = re.compile(r"Dashboard head http address: (\S+)")
_POLL_S = 0.5
_CHUNK_BYTES = 1 << 20


def sessions(base: Path) -> list[Path]:
    """Folders of the sessions below ``base``, the newest first."""
    return sorted((path for path in (base / "ray").glob("session_2*") if not path.is_symlink()), reverse=True)


def log_files(session: Path, engine: str | None = None) -> list[Path]:
    """What the server's own processes wrote: Serve's logs, and what workers said on stderr and stdout; oldest change first.

    Args:
        engine: only files in which this engine is named.
    """
    logs = session / "logs"
    files = [*logs.glob("serve/*.log"), *logs.glob("worker-*.err"), *logs.glob("worker-*.out")]
    if engine is not None:
        files = [file for file in files if _names(file, engine)]
    return sorted(files, key=lambda file: (_modified(file), file.name))


def dashboard_address(session: Path) -> str | None:
    """host:port of the session's dashboard; None if it never came up."""
    try:
        found = _ADDRESS.findall((session / "logs" / "dashboard.log").read_text(errors="replace"))
    except OSError:
        return None
    return found[-1] if found else None


class FollowedLogs:
    """Lines of files from where one left off."""

    def __init__(self) -> None:
        self._read_up_to: dict[Path, int] = {}
        self._begun: dict[Path, bytes] = {}

    def new_lines(self, files: list[Path]) -> Iterator[tuple[Path, str]]:
        """Whole lines that were not returned before, file by file. A file that became shorter is read from its beginning."""
        for file in files:
            try:
                with open(file, "rb") as opened:
                    place = self._read_up_to.get(file, 0)
                    if os.fstat(opened.fileno()).st_size < place:
                        place = 0
                        self._begun.pop(file, None)
                    opened.seek(place)
                    while chunk := opened.read(_CHUNK_BYTES):
                        self._read_up_to[file] = opened.tell()
                        *lines, self._begun[file] = (self._begun.get(file, b"") + chunk).split(b"\n")
                        for line in lines:
                            yield file, visible(line.decode(errors="replace"))
            except OSError:
                continue  # it was removed meanwhile


def follow(session: Path, engine: str | None, logs: FollowedLogs) -> Iterator[tuple[Path, str]]:
    """New lines as they come, without end."""
    while True:
        yield from logs.new_lines(log_files(session, engine))
        time.sleep(_POLL_S)


def visible(line: str) -> str:
    """``line`` without what a terminal would obey."""
    return "".join(sign if sign.isprintable() or sign == "\t" else "\ufffd" for sign in line.rstrip("\r"))


def _names(file: Path, engine: str) -> bool:
    try:
        with open(file, "rb") as opened:
            before = b""
            while chunk := opened.read(_CHUNK_BYTES):
                if engine.encode() in before + chunk:
                    return True
                before = chunk[-len(engine) :]
    except OSError:
        pass
    return False


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
