"""A thread in Serve's controller that reads and writes for the policy, which runs in the controller's loop and may not wait."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cluster.process.logs import Seldom
from cluster.scaling.inputs import ScalingInputs
from deployments.autoscaling.decision_file import DecisionFile
from deployments.autoscaling.reports import HeardReports
from deployments.autoscaling.store import SETTINGS, STATE, ScalingStore, is_report

logger = logging.getLogger("ray.serve")

PERIOD_S = 0.1


class Seen(NamedTuple):
    """What the store held when it was read last.

    Attributes:
        settings: the entry of changes; None if there is none.
        state: what an earlier policy kept; None if there is none.
        reports: by ingress, what it said and when that was heard (``time.monotonic``).
    """

    settings: bytes | None
    state: bytes | None
    reports: Mapping[str, tuple[ScalingInputs, float]]


class StoreThread:
    """Reads and writes until nobody holds it any more.

    Args:
        open_store: called on the thread, again after a failure.
        log: where decisions go; None: nowhere.
    """

    def __init__(self, open_store: Callable[[], ScalingStore], log: DecisionFile | None = None) -> None:
        self.seen: Seen | None = None
        self._open_store = open_store
        self._log = log
        self._store: ScalingStore | None = None
        self._reports = HeardReports()
        self._lock = threading.Lock()
        self._to_put: dict[str, bytes] = {}
        self._lines: list[bytes] = []
        self._may_complain = Seldom()
        threading.Thread(target=_run, args=(weakref.ref(self),), daemon=True, name="scaling-store").start()

    def keep(self, entries: Mapping[str, bytes], line: bytes | None = None) -> None:
        """Write these entries, and a line of the log, soon."""
        with self._lock:
            self._to_put |= entries
            if line is not None and self._log is not None:
                self._lines.append(line)

    def round(self) -> None:
        """Read and write once."""
        with self._lock:
            entries, self._to_put = self._to_put, {}
            lines, self._lines = self._lines, []
        try:
            self._store = store = self._store or self._open_store()
            for name, value in entries.items():
                store.put(name, value)
            found = store.all()
            reports = {name: value for name, value in found.items() if is_report(name)}
            for name in self._reports.hear(reports):
                store.remove(name)
            self.seen = Seen(found.get(SETTINGS), found.get(STATE), self._reports.reports())
        except Exception as error:  # what was seen grows old, and the policy holds
            self._store = None
            self._complain("the scaling policy's store does not answer", error)
        if self._log is None:
            return
        # Numbers of decisions go up: a policy that goes on has found at least the number that is in the log.
        try:
            self._log.write(lines)
        except OSError as error:
            self._complain("the log of scaling decisions cannot be written", error)

    def _complain(self, what: str, error: Exception) -> None:
        if self._may_complain():
            # As text: who keeps the record would keep the error, its frames, and with them this object.
            logger.warning("%s: %s: %s", what, type(error).__name__, str(error))


def _run(reference: weakref.ref[StoreThread]) -> None:
    while (thread := reference()) is not None:
        thread.round()
        del thread
        time.sleep(PERIOD_S)
