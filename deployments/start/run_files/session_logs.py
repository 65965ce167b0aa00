"""What dead processes leave in the folder of a Ray session's logs: Ray rotates a log, but never removes one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from deployments.ray_private.serve import session_logs

# Of processes that ended, the newest so many files stay to be read; each process has three or four.
MAX_KEPT = 200
# One that was written to so lately may be another machine's, where the disk is shared.
_SETTLED_S = 60.0
_ACCESS_MODE = 0o3


def tidy_session_logs() -> None:
    """Remove old logs of this process's Ray session, on a thread of its own. For what starts where something else has died."""
    folder = session_logs()
    if folder is not None:
        threading.Thread(target=remove_old_logs, args=(folder,), daemon=True).start()


def remove_old_logs(folder: str, max_kept: int = MAX_KEPT, settled_s: float = _SETTLED_S) -> int:
    """Remove the oldest files below ``folder`` that nobody writes to any more, but for ``max_kept``; returns how many.

    Only this user's files, and only where ``/proc`` tells who writes to them. A call takes milliseconds.
    """
    folder = os.path.realpath(folder)
    written = _written_files(folder + os.sep)
    if not written:
        # This process writes to some itself: there is no /proc, or the folder is no session's.
        return 0
    now, left = time.time(), []
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(path, name)
            with contextlib.suppress(OSError):
                found = os.lstat(file)
                if file not in written and found.st_uid == os.geteuid():
                    left.append((found.st_mtime, file))
    left.sort(reverse=True)
    removed = 0
    for modified, file in left[max_kept:]:
        if now - modified > settled_s:
            with contextlib.suppress(OSError):
                os.unlink(file)
                removed += 1
    return removed


def _written_files(folder: str) -> set[str]:
    """Files below ``folder`` that a process of this user has open for writing. Ray's log monitor reads those of the dead."""
    found = set()
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for number in os.listdir(descriptors):
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptors / number)
                    if target.startswith(folder) and _is_writing(descriptors.parent / "fdinfo" / number):
                        found.add(target)
    return found


def _is_writing(information: Path) -> bool:
    flags = next(line for line in information.read_text().splitlines() if line.startswith("flags:"))
    return int(flags.split()[1], 8) & _ACCESS_MODE != os.O_RDONLY
