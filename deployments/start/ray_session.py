"""Where the Ray that ``bireme serve`` starts keeps its files: in a folder that no other user of the machine may enter.

Ray makes its session folders for everybody to write to (0777, whatever the umask), and its token for everybody to read. Logs
and sockets in them would be any local user's to replace.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import MutableMapping
from pathlib import Path

from deployments.start.run_files.private_folder import private_base

# Ray's own name for the folder below which it makes ``ray/session_...``; every process of the cluster reads it.
_TMPDIR = "RAY_TMPDIR"


def keep_ray_private(base: Path, environment: MutableMapping[str, str] = os.environ) -> None:
    """For a Ray that this process is about to start: its files lie below ``base``, and what it writes is this user's alone."""
    environment[_TMPDIR] = str(base)
    os.umask(0o077)
    _close_token()


def ray_base(environment: MutableMapping[str, str] = os.environ) -> Path:
    """The folder for ``keep_ray_private``: this user's own, where a person's RAY_TMPDIR says, else among temporary files.

    Raises:
        BiremeError: as ``private_base``.
    """
    return private_base(environment.get(_TMPDIR))


def ray_leftovers(base: Path, driver: int) -> list[str]:
    """Patterns of what a Ray that process ``driver`` has started leaves below ``base``, but for its logs."""
    session = f"{glob.escape(str(base))}/ray/session_*_{driver}"
    parts = ("sockets", "metrics", "runtime_resources", "artifacts", "*.json", "*_port_*")
    return [f"{session}/{part}" for part in parts]


def _close_token() -> None:
    """Ray writes the token with which one may run anything in its clusters as the umask of that time had it."""
    token = Path.home() / ".ray" / "auth_token"
    try:
        found = token.lstat()
        if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
            token.chmod(0o600)
    except OSError:  # there is none yet, or it lies where nothing can be written: a mounted one is its owner's business
        pass
