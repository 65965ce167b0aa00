"""What a server tells the process that watches it, and how it is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

from deployments.supervision.process_tree import adopt_orphans, descendants, end_descendants, remove_all

PREPARING, STARTING, RUNNING = "preparing", "starting", "running"
STOP_S = 8.0
_END_S = 5.0
_PAUSE_S = 0.05
_LINE_END = b"\n"


class Supervised:
    """The server's side. Its standard input ends when it is to stop; from then on it writes nothing to the terminal.

    Attributes:
        stop: set once the server is to stop.
    """

    def __init__(self, reports: int, parent: int) -> None:
        self.stop = threading.Event()
        self._reports = reports
        self._parent = parent
        self._stage = PREPARING
        self._changing = threading.Lock()
        self._leftovers: list[str] = []
        self._outputs = [1, 2]
        threading.Thread(target=self._wait_for_end, daemon=True, name="supervised").start()

    def enter(self, stage: str) -> None:
        """From now on STARTING or RUNNING. Raises KeyboardInterrupt if the server is to stop already."""
        with self._changing:
            self._stage = stage
        self._tell("stage", stage)
        if self.stop.is_set():
            raise KeyboardInterrupt

    def uses_a_cluster(self) -> None:
        """A signal during the start is no reason to kill: Serve on that Ray must be told."""
        self._tell("cluster", "")

    def leaves(self, pattern: str) -> None:
        """What matches ``pattern`` (as ``glob`` has it) may be removed once all processes have ended."""
        self._leftovers.append(pattern)
        self._tell("leaves", pattern)

    def writes_to(self, descriptors: list[int]) -> None:
        """These are the terminal, too."""
        self._outputs += descriptors

    def logs_to(self, path: str) -> None:
        """Where to read what happened, should the server die without a word."""
        self._tell("log", path)

    def _tell(self, name: str, value: str) -> None:
        with contextlib.suppress(OSError):  # the parent was killed
            os.write(self._reports, f"{name} {value}".encode("utf-8", "surrogateescape") + _LINE_END)

    def _wait_for_end(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        _be_silent(self._outputs)
        self.stop.set()
        with self._changing:
            if self._stage == PREPARING:
                # A compiler tidies up after itself on this signal. The main thread may wait for one: an exception alone would
                # not reach it.
                for pid in descendants(os.getpid()):
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGTERM)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        # Its end of the pipe closes before a killed parent has ended for its children; and one that waits for the server may be
        # killed meanwhile.
        while os.getppid() == self._parent:
            time.sleep(_PAUSE_S)
        self._end_alone()

    def _end_alone(self) -> None:
        """The parent was killed, which would have done this."""
        time.sleep(STOP_S if self._stage == RUNNING else 0.0)
        adopt_orphans()
        end_descendants(_END_S)
        remove_all(self._leftovers)
        os._exit(1)


def _be_silent(outputs: list[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in outputs:
        os.dup2(nowhere, output)
    os.close(nowhere)


def read_reports(data: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """Whole lines as (name, value), and the beginning of the next one."""
    *lines, rest = data.split(_LINE_END)
    split = [line.decode("utf-8", "surrogateescape").partition(" ") for line in lines]
    return [(name, value) for name, _, value in split], rest
