"""Tells the policy, several times a second, what an ingress knows of the load, and the ingress which settings are in force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from cluster.config import Autoscaling
from cluster.scaling.inputs import ScalingInputs
from deployments.autoscaling.reports import encoded
from deployments.autoscaling.store import LATEST, ScalingStore, report_name
from deployments.autoscaling.store_entry import StoreEntry

# The reader looks as often. With an engine's beat before both, what is decided from is less than half a second old.
PERIOD_S = 0.1
_ROUNDS_A_LOOK = 10


class ReportPublisher:
    """Belongs to the event loop that runs ``run``.

    Args:
        ingress: unique among the application's ingresses.
        inputs: what is to be told; called on the event loop.
        in_force: told the settings in force, and how old the oldest word was that the policy decided from, on the event loop,
            when the policy has said them.
        open_store: called on a thread, again after a failure.
    """

    def __init__(
        self,
        ingress: str,
        inputs: Callable[[], ScalingInputs],
        in_force: Callable[[Autoscaling, float], None],
        open_store: Callable[[], ScalingStore],
    ) -> None:
        self._name = report_name(ingress)
        self._inputs, self._in_force = inputs, in_force
        self._text, self._rounds = b"", 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # Where the store does not answer, the policy holds what is until it hears again.
        trouble = "the scaling policy is not told of the load"
        self._entry = StoreEntry(self._name, self._tell, open_store, trouble)

    async def run(self) -> None:
        """Tell until this is cancelled."""
        self._loop = asyncio.get_running_loop()
        self._text = encoded(self._inputs())
        entry = asyncio.create_task(self._entry.run())
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                self._text = encoded(self._inputs())
                self._entry.is_due()
        finally:
            entry.cancel()

    def _tell(self, store: ScalingStore) -> None:
        store.put(self._name, self._text)
        self._rounds += 1
        if self._rounds % _ROUNDS_A_LOOK == 1 and (latest := store.get(LATEST)) is not None:
            said = json.loads(latest)
            settings = Autoscaling.model_validate(said["settings"])
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._in_force, settings, said.get("signal_age_s", 0.0))
