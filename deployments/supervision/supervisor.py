"""``bireme serve`` is two processes: one that takes signals and has no Ray inside, and the server, in a session of its own.

Ray's libraries answer a signal with a C++ trace or not at all, depending on the moment. No signal of a terminal or of a process
group reaches the server; it is told to stop by the end of its standard input, and whatever is left of it then is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import NoReturn

from deployments.supervision.process_tree import adopt_orphans, descendants, end_descendants, reap, remove_all
from deployments.supervision.stages import PREPARING, RUNNING, STARTING, STOP_S, Supervised, read_reports

_GIVE_UP_S = 2.0
_END_S = 5.0
# make passes SIGTERM on to children that have had it already, as members of its group.
_SAME_SIGNAL_S = 0.5
_CLEAN_LINE = "\r\x1b[K\x1b[?25h"

_supervised: Supervised | None = None


def supervised() -> Supervised:
    """Called before anything else: goes on in a child process, and is told there when to stop. The parent stays, watches, and
    leaves with the status of the whole."""
    global _supervised
    if _supervised is None:
        _supervised = _fork()
    return _supervised


def _fork() -> Supervised:  # noqa: RET503 (the parent leaves)
    stop_reading, stop_writing = os.pipe()
    report_reading, report_writing = os.pipe()
    wake_reading, wake_writing = os.pipe()
    for end in (wake_reading, wake_writing, report_reading):
        os.set_blocking(end, False)
    # A signal that comes before the loop below is a byte in the pipe. One that is ignored here (of a script's background job) is
    # taken all the same: whoever sends it to a server means it. nohup is left alone.
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    signal.set_wakeup_fd(wake_writing, warn_on_full_buffer=False)
    for one in signals:
        signal.signal(one, _noted)
    adopt_orphans()
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # the child takes none before it is in its own session
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for one in signals:
            signal.signal(one, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.dup2(stop_reading, 0)
        for end in (stop_reading, stop_writing, report_reading, wake_reading, wake_writing):
            os.close(end)
        return Supervised(report_writing, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(stop_reading)
    os.close(report_writing)
    _leave(_Watch(child, stop_writing, report_reading, wake_reading).run())


def _noted(number: int, frame: object) -> None:
    """The byte in the pipe is all."""


def _leave(status: int) -> NoReturn:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


class _Watch:
    """The parent: from the start of the server to its end."""

    def __init__(self, child: int, stop: int, reports: int, wake: int) -> None:
        self._child = child
        self._stop = stop
        self._reports = reports
        self._wake = wake
        self._stage = PREPARING
        self._is_local = True
        self._leftovers: list[str] = []
        self._log = ""
        self._rest = b""
        self._status: int | None = None
        self._signal: signal.Signals | None = None
        self._signalled = 0.0
        self._deadline = float("inf")

    def run(self) -> int:
        """Returns the exit status."""
        while self._status is None and time.monotonic() < self._deadline:
            ready, _, _ = select.select(
                [self._wake, self._reports] if self._reports >= 0 else [self._wake],
                [],
                [],
                None if self._deadline == float("inf") else max(0.0, self._deadline - time.monotonic()),
            )
            if self._reports in ready:
                self._read()
            if self._wake in ready:
                self._take(os.read(self._wake, 4096))
        is_gone = self._end()
        if not is_gone:
            _say(f"processes {descendants(os.getpid())} do not end; the kernel holds them")
        if self._status is None:
            self._status = -signal.SIGKILL
        elif self._status < 0 and self._signal is None:
            where = f"; what it wrote is in {self._log}" if self._log else ""
            _say(f"the server died by {signal.Signals(-self._status).name}{where}")
        if self._signal is not None and (self._stage != RUNNING or self._status != 0):
            return 128 + self._signal
        return self._status if self._status >= 0 else 128 - self._status

    def _read(self) -> None:
        try:
            data = os.read(self._reports, 65536)
        except BlockingIOError:
            return
        if not data:
            os.close(self._reports)
            self._reports = -1
        lines, self._rest = read_reports(self._rest + data)
        for name, value in lines:
            if name == "stage":
                self._stage = value
            elif name == "cluster":
                self._is_local = False
            elif name == "leaves":
                self._leftovers.append(value)
            elif name == "log":
                self._log = value

    def _take(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                ended = reap() or {}
                self._status = ended.get(self._child, self._status)
            elif self._signal is None:
                self._begin_to_stop(signal.Signals(number))
            elif time.monotonic() - self._signalled > _SAME_SIGNAL_S:
                self._deadline = 0.0

    def _begin_to_stop(self, number: signal.Signals) -> None:
        self._signal, self._signalled = number, time.monotonic()
        if self._stage == RUNNING:
            patience_s = STOP_S
            _say(f"{number.name}: stopping, for {STOP_S:.0f} s at most; a second one ends at once")
        else:
            # A Ray of this machine's own has nothing yet that is worth an orderly end; on a cluster Serve must be told.
            patience_s = STOP_S if not self._is_local else 0.0 if self._stage == STARTING else _GIVE_UP_S
            _say(f"{number.name}: the start is given up")
        self._deadline = time.monotonic() + patience_s
        os.close(self._stop)

    def _end(self) -> bool:
        """Kill what is left, remove what it would have removed; whether nothing runs any more."""
        if self._status is None:
            # First the one that would comment on the deaths of the others.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        is_gone = end_descendants(_END_S)
        while self._reports >= 0 and select.select([self._reports], [], [], 0)[0]:
            self._read()
        remove_all(self._leftovers)
        return is_gone


def _say(what: str) -> None:
    # On a terminal a progress bar may have been there, which hides the cursor.
    start = _CLEAN_LINE if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}bireme: {what}\n".encode())
