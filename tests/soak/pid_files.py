"""HAProxy's pid files whose process has ended: the next start removes them, so any number may be there until it comes."""

from __future__ import annotations

import os
from pathlib import Path

# A process may end between a start's look at it and the file which tells that this start was.
_STARTS = 2


class LeftPidFiles:
    """What starts should have removed and did not, from look to look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = 0
        self._seen: set[str] = set()
        # Of each ended process: the starts before it was seen as ended.
        self._ended: dict[str, int] = {}

    def look(self) -> int:
        """How many files belong to a process that had ended before the last two starts."""
        # As the shell that removes them asks: a zombie is there.
        ended = {name for name in os.listdir(self._folder) if not Path("/proc", name).exists()}
        names = set(os.listdir(self._folder))
        self._starts += len(names - self._seen)
        self._seen |= names
        self._ended = {name: self._ended.get(name, self._starts) for name in ended & names}
        return sum(self._starts - before >= _STARTS for before in self._ended.values())
