"""A file of decisions, one a line, that does not grow beyond a bound."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from deployments.ray_private.serve import session_logs

# The file before this one stays, so that twice as much lies on the disk.
MAX_BYTES = 16 * 2**20


class DecisionFile:
    """Belongs to one thread. Only this user may read what it makes.

    Args:
        path: of the file; what it holds already stays.
        max_bytes: beyond which a new file is begun; the one before it has ``.1`` behind its name.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: int | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        """Append ``lines``, which have no ends yet.

        Raises:
            OSError: the disk is full, or the folder is not to be written to.
        """
        if not lines:
            return
        if self._file is None:
            # Never through a link that somebody else has put there.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o600)
        os.write(self._file, b"".join(line + b"\n" for line in lines))
        if os.fstat(self._file).st_size > self._max_bytes:
            os.close(self._file)
            self._file = None
            os.replace(self.path, self.path.with_name(self.path.name + ".1"))

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def decision_file(application: str) -> DecisionFile | None:
    """Of this application, beside Serve's logs of this process's Ray session; None where that has no folder of logs."""
    folder = session_logs()
    if folder is None:
        return None
    return DecisionFile(Path(folder) / "serve" / file_name(application))


def file_name(application: str) -> str:
    return f"autoscaling_{re.sub(r'[^A-Za-z0-9._-]+', '-', application)}.jsonl"
