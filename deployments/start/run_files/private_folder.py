"""Folders of this user on this machine that nobody else may enter: what lies in one needs no guard of its own."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from cluster.errors import BiremeError
from cluster.process.trusted_path import NO_OTHERS, other_writer

# A socket's path has at most 107 characters, and below the base Ray makes
# ray/session_2026-11-28_12-34-56_123456_1234567/sockets/dash_MetricsHead.
_LONGEST_FOR_RAY = 35
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_base(parent: str | None = None, longest: int = _LONGEST_FOR_RAY) -> Path:
    """The folder ``bireme-UID``, made if it is not there.

    Args:
        parent: where it lies; default: the folder for temporary files. /tmp if the path would be too long for sockets.
        longest: path, in bytes, that has room for sockets.

    Raises:
        BiremeError: somebody else was there first, or others may enter it; one sentence that says what to do.
    """
    name = f"bireme-{os.geteuid()}"
    folder = Path(parent or tempfile.gettempdir(), name).absolute()
    if len(os.fsencode(folder)) > longest:
        folder = Path("/tmp", name)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise BiremeError(f"{folder} cannot be made: {error.strerror}; {_WAY_OUT}") from None
    if (fault := not_private(folder)) is not None:
        raise BiremeError(f"{fault}; remove it if it is not wanted, or {_WAY_OUT}")
    if (fault := other_writer(folder)) is not None:
        raise BiremeError(f"{fault}: they could exchange {folder}; {_WAY_OUT}, or {NO_OTHERS}")
    return folder


_WAY_OUT = "set TMPDIR to a folder of your own with a short path"


def not_private(folder: Path) -> str | None:
    """Why others than this user may enter or replace what is in ``folder``; None if they may not. Links are not followed."""
    try:
        found = folder.lstat()
    except OSError as error:
        return f"{folder} cannot be looked at: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to another user (uid {found.st_uid})"
    if found.st_mode & _OTHERS:
        return f"{folder} is open to other users (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
