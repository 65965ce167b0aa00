"""An entry of an ingress in the store, which lives as long as the ingress, and a thread that renews it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from cluster.process.logs import Seldom
from deployments.autoscaling.store import ScalingStore

logger = logging.getLogger("ray.serve")


class StoreEntry:
    """The thread talks to the store, so that nobody waits for that.

    Args:
        name: of the entry; it is removed at the end.
        renew: called on the thread with the store, to write the entry and to read what others wrote. What it raises is logged
            from time to time, and tried again.
        open_store: called on the thread, again after a failure.
        trouble: what to say in the log where that fails.
        period_s: renewed so often; None: when ``is_due`` is called.
    """

    def __init__(
        self,
        name: str,
        renew: Callable[[ScalingStore], None],
        open_store: Callable[[], ScalingStore],
        trouble: str,
        period_s: float | None = None,
    ) -> None:
        self._name, self._renew, self._open_store = name, renew, open_store
        self._trouble, self._period_s = trouble, period_s
        self._due, self._has_ended = threading.Event(), False
        self._may_complain = Seldom()

    def is_due(self) -> None:
        """Renew it now."""
        self._due.set()

    async def run(self) -> None:
        """Until this is cancelled."""
        threading.Thread(target=self._talk, daemon=True, name=f"store-{self._name}").start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._has_ended = True
            self._due.set()

    def _talk(self) -> None:
        store = None
        while not self._has_ended:
            try:
                store = store or self._open_store()
                self._renew(store)
            except Exception as error:
                store = None
                if not self._has_ended and self._may_complain():
                    logger.warning("%s: %s: %s", self._trouble, type(error).__name__, error)
            self._due.wait(self._period_s)
            self._due.clear()
        if store is not None:
            with contextlib.suppress(Exception):
                store.remove(self._name)
