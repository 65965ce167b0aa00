"""Tells the policy, several times a second, what an ingress knows of the load, and the ingress which settings are in force."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable

from cluster.config import Autoscaling
from cluster.process.logs import Seldom
from cluster.scaling.inputs import ScalingInputs
from deployments.autoscaling.reports import encoded
from deployments.autoscaling.store import LATEST, ScalingStore, report_name

logger = logging.getLogger("ray.serve")

# The reader looks as often. With an engine's beat before both, what is decided from is less than half a second old.
PERIOD_S = 0.1
_ROUNDS_A_LOOK = 10


class ReportPublisher:
    """Belongs to the event loop that runs ``run``; a thread of its own talks to the store, so that nobody waits for that.

    Args:
        application: Serve's name of it.
        ingress: unique among the application's ingresses.
        inputs: what is to be told; called on the event loop.
        in_force: told the settings in force, and how old the oldest word was that the policy decided from, on the event loop,
            when the policy has said them.
    """

    def __init__(
        self,
        application: str,
        ingress: str,
        inputs: Callable[[], ScalingInputs],
        in_force: Callable[[Autoscaling, float], None],
    ) -> None:
        self._application, self._name = application, report_name(ingress)
        self._inputs, self._in_force = inputs, in_force
        self._text = b""
        self._changed, self._ended = threading.Event(), False
        self._may_complain = Seldom()

    async def run(self) -> None:
        """Tell until this is cancelled."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._talk, args=(loop,), daemon=True, name="scaling-report").start()
        try:
            while True:
                self._text = encoded(self._inputs())
                self._changed.set()
                await asyncio.sleep(PERIOD_S)
        finally:
            self._ended = True
            self._changed.set()

    def _talk(self, loop: asyncio.AbstractEventLoop) -> None:
        store, rounds = None, 0
        while not self._ended:
            self._changed.wait()
            self._changed.clear()
            try:
                store = store or ScalingStore(self._application)
                store.put(self._name, self._text)
                rounds += 1
                if rounds % _ROUNDS_A_LOOK == 1:
                    self._look(store, loop)
            except Exception as error:  # the policy holds what is until it hears again
                store = None
                if self._may_complain():
                    logger.warning("the scaling policy is not told of the load: %s: %s", type(error).__name__, error)
        if store is not None:
            with contextlib.suppress(Exception):
                store.remove(self._name)

    def _look(self, store: ScalingStore, loop: asyncio.AbstractEventLoop) -> None:
        latest = store.get(LATEST)
        if latest is not None:
            said = json.loads(latest)
            settings = Autoscaling.model_validate(said["settings"])
            loop.call_soon_threadsafe(self._in_force, settings, said.get("signal_age_s", 0.0))
