"""Files of API keys, which nobody else may read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cluster.api_key import is_api_key
from cluster.errors import BiremeError

_LONGEST_FILE = 1 << 20


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line.

    Raises:
        BiremeError: it cannot be read, others may read it, or it has a line that is no key, or none at all.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would be waited for
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _file_error(path, "is no file")
            if (fault := _who_may_read(found)) is not None:
                raise _file_error(path, fault)
            content = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise _file_error(path, f"cannot be read: {error.strerror}") from None
    if len(content) > _LONGEST_FILE:
        raise _file_error(path, f"is longer than {_LONGEST_FILE} bytes")
    lines = [line.strip() for line in content.decode("utf-8", "surrogateescape").splitlines()]
    keys = [line for line in lines if line]
    for i, line in enumerate(lines):
        if line and not is_api_key(line):
            raise _file_error(path, f"line {i + 1} must be a key of visible ASCII characters without spaces")
    if not keys:
        raise _file_error(path, "has no key; leave the setting out for an API that is open to all")
    return keys


def write_keys(path: Path, keys: Sequence[str]) -> None:
    """Make a new file that ``read_keys`` reads and no other user may."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.writelines(f"{key}\n" for key in keys)


def _who_may_read(found: os.stat_result) -> str | None:
    """What is wrong with who may read or write a file of keys. As PostgreSQL wants it of its own: a file of root's, such as a
    secret that was mounted, may be readable by a group."""
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == os.geteuid():
        return None if not mode & 0o077 else f"is open to other users (mode {mode:04o}): chmod 600"
    if found.st_uid == 0:
        return None if not mode & 0o037 else f"is open to other users (mode {mode:04o}): chmod 640"
    return f"belongs to another user (uid {found.st_uid})"


def _file_error(path: Path, what: str) -> BiremeError:
    return BiremeError(f"api_keys_file: {path} {what}", "api_keys_file")
