"""Unix sockets that lie in the file system."""

from __future__ import annotations

import socket
from pathlib import Path


def has_listener(path: Path) -> bool:
    """Whether a process listens there, also one whose queue is full; what killed processes left has none.

    Raises:
        FileNotFoundError: there is no socket.
        OSError: it cannot be asked.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
    return True
