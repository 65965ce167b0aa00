"""The ingress's side of spare processes: it owns a keeper on each node, and has a first engine's runner started early."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import BiremeError
from deployments.ray_private.worker_pool import prestart
from deployments.spares.engine_processes import RUNNER, EngineProcesses
from deployments.spares.keeper import SpareKeeper
from deployments.spares.process_hook import UNKEPT_S
from deployments.spares.roster import Roster

logger = logging.getLogger("ray.serve")

_LOOK_S = 2.0
_ANSWER_TIMEOUT_S = 1.0
_NAME_PREFIX = "bireme-spares::"
# What a runner and a replica that wait have for themselves: Paddle, Ray, Serve. Mapped weights are the disk's.
SPARE_BYTES = 512 << 20


class SpareKeepers:
    """All keepers of one application.

    Args:
        wanted: spares of each kind on each node; 0: no keepers.
    """

    def __init__(self, processes: EngineProcesses, wanted: int) -> None:
        self._processes = processes
        self._wanted = wanted
        self._keepers: dict[str, Any] = {}

    async def keep(self) -> None:
        """See to it that there is one on each node that can have engines; runs until it is cancelled."""
        while self._wanted:
            try:
                await asyncio.to_thread(self._look)
            except Exception as error:  # Ray's head is away for a moment
                logger.warning("event=no_keepers error=%s", type(error).__name__)
            await asyncio.gather(*(self._begin(node_id) for node_id in list(self._keepers)))
            await asyncio.sleep(_LOOK_S)

    async def figures(self) -> list[dict[str, Any]]:
        """``SpareKeeper.figures`` of each keeper that answers."""
        found = await asyncio.gather(*map(self._figures, list(self._keepers.values())))
        return [figures for figures in found if figures is not None]

    async def prepare_first(self) -> None:
        """A first engine will start: where it can only be here, begin its runner before its replica's process is there to do so
        (``process_hook``)."""
        try:
            await asyncio.to_thread(self._prepare_first)
        except Exception as error:  # they begin when they are needed
            logger.warning("event=no_early_runner error=%s: %s", type(error).__name__, error)

    def _prepare_first(self) -> None:
        if self._nodes() != [ray.get_runtime_context().get_node_id()]:
            return
        try:
            roster = Roster(self._processes.group, ray.get_runtime_context().get_node_id())
        except (BiremeError, OSError):
            return
        if not roster.spares(RUNNER) and not roster.num_coming(RUNNER):
            with roster.asking(RUNNER):
                prestart(self._processes.variables[RUNNER], int(UNKEPT_S), from_controller=False)

    def _look(self) -> None:
        nodes = self._nodes()
        for node_id in nodes:
            if node_id not in self._keepers:
                self._keepers[node_id] = (
                    ray.remote(SpareKeeper)
                    .options(
                        name=f"{_NAME_PREFIX}{self._processes.group}::{node_id}",
                        get_if_exists=True,
                        num_cpus=0,
                        memory=self._wanted * SPARE_BYTES,
                        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
                    )
                    .remote(self._processes, self._wanted)
                )
        for node_id in self._keepers.keys() - set(nodes):
            del self._keepers[node_id]

    def _nodes(self) -> list[str]:
        return nodes_for(self._processes.reserved, ray.nodes())

    async def _begin(self, node_id: str) -> None:
        try:
            await asyncio.wait_for(self._keepers[node_id].run.remote(), _ANSWER_TIMEOUT_S)
        except asyncio.TimeoutError:  # it starts, or the node has no memory for it
            pass
        except RayError:
            self._keepers.pop(node_id, None)  # the ingress that owned it has ended; the next look makes another

    async def _figures(self, keeper: Any) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(keeper.figures.remote(), _ANSWER_TIMEOUT_S)
        except (RayError, asyncio.TimeoutError):
            return None


def nodes_for(reserved: Mapping[str, float], nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of those among ``nodes``, as ``ray.nodes()`` has them, that live and hold what an engine reserves, taken or not."""
    return [
        node["NodeID"]
        for node in nodes
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in reserved.items())
    ]
