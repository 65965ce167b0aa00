"""The device's queue of work. On the CPU it is a worker thread, so that overlap is the same code that a GPU runs.

Work runs in the order in which it was put there. Paddle and our ops release the interpreter lock while they compute, so
the thread really runs beside the host (measured: a spinning Python thread on the other core keeps its full speed).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import paddle


class CpuStream:
    """One worker thread that runs what it is given, in order, without gradients."""

    def __init__(self, name: str = "device-stream") -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], None]) -> None:
        """Queue ``work`` and return at once. It must not raise: a step keeps its own error and reports it when saved."""
        self._work.put(work)

    def synchronize(self) -> None:
        """Wait until everything queued so far has run."""
        reached = threading.Event()
        self._work.put(reached.set)
        reached.wait()

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        with paddle.no_grad():  # gradient mode belongs to a thread
            while (work := self._work.get()) is not None:
                work()
                del work  # a step's objects must not live until the next one arrives
