"""A folder for the files of one ``bireme serve``, gone when its process is."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from cluster.errors import BiremeError

# HAProxy's sockets lie two levels down, in a folder named by a Ray node id, and a socket's path has at most 97 characters there.
LONGEST_FOR_HAPROXY = 27
_OWN_PART = len("/bireme-12345678")

# Inside the folder: empty files named by the ids of processes that must not outlive this one.
PIDS = "pids"

# An id may be another process's by now; one of ours names the folder in its arguments.
_JANITOR = """
cat >/dev/null
for file in "$1"/pids/*; do
    pid=${file##*/}
    if tr '\\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$1/"; then kill -KILL "$pid"; fi
done
sleep 2
rm -rf -- "$1"
"""


def make_run_folder() -> Path:
    """Make a folder that only this user may enter, and that is removed after this process ended, in whatever way it does.

    Raises:
        BiremeError: none can be made; one sentence that says what to do.

    Processes that are listed in its PIDS and have the folder's path in their arguments are ended then, too (on Linux).
    A pipe that stays open as long as this process tells a waiting shell when it is over. It lies among temporary files, or in
    /tmp where that path would be too long for sockets.
    """
    try:
        folder = tempfile.mkdtemp(prefix="bireme-")
        if len(os.fsencode(folder)) > LONGEST_FOR_HAPROXY:
            os.rmdir(folder)
            folder = tempfile.mkdtemp(prefix="bireme-", dir="/tmp")
    except OSError as error:
        raise BiremeError(
            f"no folder for sockets can be made: {error.strerror or error}; set TMPDIR to a folder of your own on a path of at "
            f"most {LONGEST_FOR_HAPROXY - _OWN_PART} characters, or make /tmp writable"
        ) from None
    os.mkdir(os.path.join(folder, PIDS))
    reading, _ = os.pipe()
    # A session of its own: Ctrl-C at the terminal is not for it.
    subprocess.Popen(
        ["sh", "-c", _JANITOR, "sh", folder],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reading)
    return Path(folder)
