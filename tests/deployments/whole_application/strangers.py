"""What another user of the same machine, and whoever may look at Ray Serve, gets to see of a running application."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

NOBODY = 65534


def files_with(words: Sequence[str], folders: Iterable[Path]) -> list[str]:
    """Files below ``folders`` in which one of ``words`` stands, by name or content."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        content = path.name.encode()
        if path.is_file() and not path.is_symlink():
            content += path.read_bytes()
        if any(word.encode() in content for word in words):
            found.append(str(path))
    return found


def shown_by_ps(pids: Iterable[int]) -> Iterator[str]:
    """The command lines of processes, which every user of a machine may read."""
    for pid in pids:
        try:
            yield Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue


# Tries every door as another user, and says which of them opened.
_STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
def attempt(what, action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return
    print(what, *arguments)
def connect(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
for path in sys.stdin.read().splitlines():
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    attempt("list", os.listdir, folder)
    attempt("read", lambda path: open(path).close(), path)
    attempt("write", lambda path: open(path, "a").close(), path)
    attempt("make", lambda path: open(path, "x").close(), os.path.join(folder, "stranger"))
    attempt("link", os.link, path, "/tmp/bireme-stranger")
    attempt("rename", os.rename, path, path + ".old")
    attempt("remove", os.unlink, path)
    attempt("connect", connect, path)
"""


def opened_by_a_stranger(paths: Iterable[Path]) -> str:
    """What another user could do to ``paths``, one attempt a line; empty is well. Takes root."""
    assert os.geteuid() == 0
    tried = subprocess.run(
        [sys.executable, "-c", _STRANGER, str(NOBODY)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=True,
    )
    return tried.stdout
