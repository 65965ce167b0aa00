"""Whether a file may have been put there by another user of this machine, who could then decide what runs as this one."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from pathlib import Path

_ALONE = "BIREME_ONLY_USER"
NO_OTHERS = f"{_ALONE}=1 if nobody else uses this machine (a pod)"
_WHOLE_MACHINE = ["0", "0", "4294967295"]


def other_writer(path: Path) -> str | None:
    """Who besides this user and root may change or replace ``path``, in words that end a sentence; None if nobody may.

    Looks at the path and every folder above it, as they are named and as they are. What does not exist yet is no fault.
    BIREME_ONLY_USER=1 says that there is nobody: volumes of pods are open to all that are not there.
    """
    if os.environ.get(_ALONE) == "1":
        return None
    named, real = Path(os.path.abspath(path)), path.resolve()
    for part in dict.fromkeys([*reversed(real.parents), real, *reversed(named.parents), named]):
        try:
            link, found = part.lstat(), part.stat()
        except OSError:
            continue
        for owner in (link.st_uid, found.st_uid):
            if not _is_trusted(owner):
                return f"{part} belongs to another user (uid {owner})"
        if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
            continue  # there others may make files, but not replace one of ours
        if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)):
            return f"{part} may be written to by other users (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it that are missing, for this user alone to write to, whatever the umask."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(mode=0o755, exist_ok=True)


def _is_trusted(user: int) -> bool:
    return user in (0, os.geteuid(), _unknown_user())


@functools.cache
def _unknown_user() -> int | None:
    """The id as which those appear that have none in this user namespace, the machine's own root among them; None where all have
    theirs. Nobody in here can be one of them."""
    try:
        if Path("/proc/self/uid_map").read_text().split() == _WHOLE_MACHINE:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


@functools.cache
def _is_own_group(group: int) -> bool:
    """Whether it is the group that some systems make for each user, with that user alone in it."""
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
