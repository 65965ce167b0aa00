"""Whether another process of this machine has ended, seen earlier than by its connections.

The kernel takes a killed process's memory away before it closes its sockets, and where all cores are busy that took up to 1.9
seconds. Until then nothing that waits for a connection to break, Ray included, learns of the death.
"""

from __future__ import annotations


def has_ended(pid: int) -> bool:
    """Whether the process ``pid`` is gone, or is being taken down: its main thread is a zombie, whatever is left of the others.

    False where that cannot be told: there is no ``/proc``, or this process has no descriptor left to look with.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state = stat.read().rpartition(b") ")[2][:1]
    except ProcessLookupError:  # it went between the two calls
        return True
    except FileNotFoundError:
        return _there_is_proc()
    except OSError:
        return False
    return state in (b"Z", b"X")


class PeerProcess:
    """A process that tells its own id, on this machine but perhaps in another container, where that id means nothing here.

    Attributes:
        pid: as it told.
    """

    def __init__(self, pid: int) -> None:
        """``pid`` has just been heard of."""
        self.pid = pid
        self._is_seen = not has_ended(pid)

    def has_ended(self) -> bool:
        """As the function; False if it was never seen from here."""
        return self._is_seen and has_ended(self.pid)


def _there_is_proc() -> bool:
    try:
        with open("/proc/self/stat", "rb"):
            return True
    except OSError:
        return False
