"""Keeps so many spare processes of each kind on one node: starts them, and others when they go. An actor; they end with it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import ray

from cluster.observability.metrics import SPARE_METRICS
from cluster.process.logs import guard_logs, log_fields
from cluster.process.process_liveness import has_ended
from deployments.metrics.metrics_export import ray_metrics
from deployments.ray_private.worker_pool import prestart
from deployments.spares.engine_processes import KINDS, REPLICA, EngineProcesses
from deployments.spares.roster import COMING_S, Roster, Spare

logger = logging.getLogger("bireme.spares")

_LOOK_S = 0.25
_METRICS_S = 1.0
# The engine that took the last one has the cores first.
_SETTLE_S = 5.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 60.0
_FOR_EVER_S = 10 * 365 * 86_400


class _Kind:
    """The spares of one kind.

    Attributes:
        known: those that were there at the last look.
        coming: when those were asked for that have not come yet.
        adopted, lost: how many have left for an engine; how many ended before that.
    """

    def __init__(self) -> None:
        self.known: dict[int, Spare] = {}
        self.coming: list[float] = []
        self.adopted = self.lost = 0
        self.not_before = 0.0
        self.backoff_s = _FIRST_BACKOFF_S

    def look(self, spares: list[Spare], now: float) -> None:
        """So it is now."""
        found = {spare.pid: spare for spare in spares}
        self.coming = [asked for asked in self.coming if now - asked < COMING_S]
        for pid in found.keys() - self.known.keys():
            if self.coming:
                self.coming.pop(0)
            if not has_ended(pid):
                logger.info("event=spare_came pid=%d", pid)
        for pid in self.known.keys() - found.keys():
            if has_ended(pid):
                self.lost += 1
                self.not_before = now + self.backoff_s
                self.backoff_s = min(_MAX_BACKOFF_S, 2 * self.backoff_s)
            else:
                self.adopted += self.known[pid].is_ready  # else it was started for the engine that has it
                self.not_before = now + _SETTLE_S
                self.backoff_s = _FIRST_BACKOFF_S
        self.known = found

    def missing(self, wanted: int, now: float) -> int:
        """How many to ask for."""
        return 0 if now < self.not_before else max(0, wanted - len(self.known) - len(self.coming))


class SpareKeeper:
    """Of one group of engines on the node of this actor.

    Args:
        wanted: spares of each kind.
    """

    def __init__(self, processes: EngineProcesses, wanted: int) -> None:
        guard_logs("bireme.spares")
        self._processes = processes
        self._wanted = wanted
        self._node_id = ray.get_runtime_context().get_node_id()
        self._roster = Roster(processes.group, self._node_id)
        self._roster.keep()
        self._kinds = {kind: _Kind() for kind in KINDS}
        self._metrics = ray_metrics(SPARE_METRICS)
        self._running: asyncio.Task | None = None

    def __repr__(self) -> str:
        """What Ray's dashboard calls the actor."""
        return f"spares {self._processes.model} {self._node_id[:8]}"

    async def run(self) -> int:
        """Begin to keep; this process's id."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())
        return os.getpid()

    async def figures(self) -> dict[str, Any]:
        """By kind: how many are wanted, ready, being prepared; how many engines took one, and how many ended before."""
        return {"node_id": self._node_id, "pid": os.getpid()} | {
            kind: {
                "wanted": self._wanted,
                "ready": sum(spare.is_ready for spare in state.known.values()),
                "preparing": sum(not spare.is_ready for spare in state.known.values()) + len(state.coming),
                "adopted": state.adopted,
                "lost": state.lost,
                "pids": sorted(state.known),
            }
            for kind, state in self._kinds.items()
        }

    async def _run(self) -> None:
        told_at = 0.0
        while True:
            for kind, state in self._kinds.items():
                try:
                    await self._keep(kind, state)
                except Exception as error:  # the next look may do better
                    state.not_before = time.monotonic() + state.backoff_s
                    state.backoff_s = min(_MAX_BACKOFF_S, 2 * state.backoff_s)
                    what = log_fields(kind=kind, error=type(error).__name__)
                    logger.warning("event=no_spare %s: %s", what, str(error).splitlines()[0] if str(error) else "")
            if time.monotonic() - told_at > _METRICS_S:
                told_at = time.monotonic()
                self._tell()
            await asyncio.sleep(_LOOK_S)

    async def _keep(self, kind: str, state: _Kind) -> None:
        state.look(self._roster.spares(kind), time.monotonic())
        for _ in range(state.missing(self._wanted, time.monotonic())):
            variables = self._processes.variables[kind]
            with self._roster.asking(kind):
                await asyncio.to_thread(prestart, variables, _FOR_EVER_S, kind == REPLICA)
            state.coming.append(time.monotonic())

    def _tell(self) -> None:
        for kind, state in self._kinds.items():
            ready = sum(spare.is_ready for spare in state.known.values())
            self._metrics["bireme_warm_spares"].set(ready, {"kind": kind})
