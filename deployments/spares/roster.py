"""Who of the spare processes of a node is there: each writes a small file into a folder that only this user may enter."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.process.process_liveness import has_ended
from deployments.start.run_files.private_folder import private_base

_KEEPER = "keeper"
_ASKED = "asked"
_READY, _PREPARING = "ready", "preparing"
# A process joins within this time of being asked for, or does not come.
COMING_S = 30.0
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

    @contextlib.contextmanager
    def asking(self, kind: str) -> Iterator[None]:
        """This process has one of that kind started in the block; if that fails nobody was asked for."""
        # By name in the order in which they ask: the clock is the node's.
        name = f"{_ASKED}-{kind}-{time.monotonic_ns():020d}-{secrets.token_hex(4)}.{os.getpid()}"
        self._write(name, "")
        try:
            yield
        except BaseException:
            (self._folder / name).unlink(missing_ok=True)
            raise

    def num_coming(self, kind: str) -> int:
        """How many were asked for lately, by somebody who lives, and have not joined yet."""
        return len(self._asked(kind))

    def join(self, kind: str) -> int | None:
        """This process is a spare of that kind, which prepares itself.

        Returns:
            Of the processes that ask for one, the first that did; None if nobody does who lives: it was started for an actor.
        """
        self._write(f"{kind}.{os.getpid()}", _PREPARING)
        for path in sorted(self._asked(kind)):
            with contextlib.suppress(FileNotFoundError):  # another one came for it
                path.unlink()
                return int(path.suffix[1:])
        return None

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

    def _asked(self, kind: str) -> list[Path]:
        found = []
        for path in self._folder.glob(f"{_ASKED}-{kind}-*.*"):
            with contextlib.suppress(OSError):  # what was asked for joined at this moment
                if time.time() - path.stat().st_mtime < COMING_S and not has_ended(int(path.suffix[1:])):
                    found.append(path)
                else:
                    path.unlink(missing_ok=True)
        return found

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
