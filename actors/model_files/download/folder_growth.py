"""Progress of a download that another program writes: the folder's size tells how far it is."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

from cluster.process.cache import Progress

POLL_SECONDS = 0.25


class FolderGrowth:
    """Context manager that reports how many bytes have appeared below a folder since it was entered.

    Args:
        folder: may not exist yet.
        what: passed to ``progress``.
        total: expected bytes; 0 if unknown.
        progress: called from a thread of its own, and with the final size on leaving.
    """

    def __init__(self, folder: Path, what: str, total: int, progress: Progress | None) -> None:
        self._folder, self._what, self._total, self._progress = folder, what, total, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True, name="folder-growth")
        self._before = 0

    def __enter__(self) -> FolderGrowth:
        if self._progress:
            self._before = folder_bytes(self._folder)
            self._progress(self._what, 0, self._total)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress:
            self._done.set()
            self._thread.join()
            self._report()

    def _poll(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._report()

    def _report(self) -> None:
        assert self._progress is not None  # the thread runs only where someone listens
        grown = max(0, folder_bytes(self._folder) - self._before)
        self._progress(self._what, min(grown, self._total) if self._total else grown, self._total)


def folder_bytes(folder: Path) -> int:
    """Size of the regular files below ``folder``; files that vanish meanwhile count as nothing."""
    size = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            found = path.lstat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
        except OSError:
            continue
    return size
