"""Who of the spare processes of a node is there: each writes a small file into a folder that only this user may enter."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from cluster.process.process_liveness import has_ended
from deployments.start.run_files.private_folder import private_base

_KEEPER = "keeper"
_READY, _PREPARING = "ready", "preparing"
# A folder of another node or group, in which nobody lives and nothing has changed for so long, is removed.
_ABANDONED_S = 600.0
# No socket lies there, so a long path will do.
_LONGEST_BASE = 1000


class Spare(NamedTuple):
    """A process that no engine has.

    Attributes:
        is_ready: it has prepared what it could.
    """

    pid: int
    is_ready: bool


class Roster:
    """The folder of one group of processes on one node.

    Raises:
        BiremeError: others than this user may enter it.
        OSError: it cannot be made.
    """

    def __init__(self, group: str, node_id: str) -> None:
        base = private_base(longest=_LONGEST_BASE) / "spares"
        self._folder = base / hashlib.sha256(f"{group}\0{node_id}".encode()).hexdigest()[:24]
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def join(self, kind: str) -> None:
        """This process is a spare of that kind, which prepares itself."""
        self._write(f"{kind}.{os.getpid()}", _PREPARING)

    def ready(self, kind: str) -> None:
        """It has prepared itself."""
        if self._path(kind, os.getpid()).exists():
            self._write(f"{kind}.{os.getpid()}", _READY)

    def leave(self, kind: str) -> None:
        """It is no spare any more."""
        self._path(kind, os.getpid()).unlink(missing_ok=True)

    def spares(self, kind: str) -> list[Spare]:
        """Those that live."""
        found = []
        for path in self._folder.glob(f"{kind}.*"):
            pid = path.suffix[1:]
            if not pid.isdecimal():
                continue
            if has_ended(int(pid)):
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(OSError):  # it left at this moment
                found.append(Spare(int(pid), path.read_text() == _READY))
        return found

    def keep(self) -> None:
        """This process keeps the spares from now on."""
        self._remove_abandoned()
        self._write(_KEEPER, str(os.getpid()))

    def keeper(self) -> int | None:
        """The process that keeps them; None if there is none that lives."""
        try:
            pid = int((self._folder / _KEEPER).read_text())
        except (OSError, ValueError):
            return None
        return None if has_ended(pid) else pid

    def _path(self, kind: str, pid: int) -> Path:
        return self._folder / f"{kind}.{pid}"

    def _write(self, name: str, text: str) -> None:
        part = self._folder / f".{name}.{os.getpid()}"
        part.write_text(text)
        os.replace(part, self._folder / name)

    def _remove_abandoned(self) -> None:
        for folder in self._folder.parent.iterdir():
            with contextlib.suppress(OSError, ValueError):
                if folder == self._folder or time.time() - folder.stat().st_mtime < _ABANDONED_S:
                    continue
                files = list(folder.iterdir())
                if all(has_ended(int(f.read_text() if f.name == _KEEPER else f.suffix[1:])) for f in files):
                    for file in files:
                        file.unlink(missing_ok=True)
                    folder.rmdir()
