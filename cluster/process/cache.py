"""The folder where everything that can be made again is kept: downloaded models, built ops, hashes of large files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.process.trusted_path import make_folder

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: a sentence fragment for a person, and bytes or items; total 0 means unknown."""


def cache_dir() -> Path:
    """Return $BIREME_CACHE, else ``bireme`` in the user's cache folder; it need not exist yet."""
    base = os.environ.get("BIREME_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bireme"


@contextmanager
def exclusive(lock_file: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an advisory lock on ``lock_file`` (made if missing), so that one process of this machine does the work.

    Args:
        on_wait: called once if another process holds the lock now.
    """
    make_folder(lock_file.parent)
    with open(lock_file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait:
                on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
