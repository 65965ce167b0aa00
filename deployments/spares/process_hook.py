"""What a process of an engine does at its start, before it gets work: it prepares itself, and ends where nobody wants it.

That of a replica first has its runner's started beside it, so that both prepare themselves at the same time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import threading
import time

import ray

from cluster.errors import BiremeError
from cluster.process.process_liveness import has_ended
from deployments.ray_private.worker_pool import prestart
from deployments.spares.engine_processes import REPLICA, RUNNER, VARIABLE
from deployments.spares.roster import Roster

logger = logging.getLogger("bireme.runner")

_LOOK_S = 0.1
# A process that has been idle for less was started for the actor that has it now.
_IDLE_S = 0.3
# One that nobody keeps was started for an engine that was expected; the engine's actors come within this time.
UNKEPT_S = 60.0


class _Process:
    """This process, until an actor has it."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self._began = time.monotonic()
        self._prepared: float | None = None
        self._adopted: float | None = None
        self._roster: Roster | None = None
        self._asker: int | None = None
        with contextlib.suppress(BiremeError, OSError):  # without a roster nobody keeps it
            self._roster = Roster(group, ray.get_runtime_context().get_node_id())
            self._asker = self._roster.join(kind)
        keeper = self._roster.keeper() if self._roster else None
        # Others than the keeper ask for one that is needed at once.
        self._is_kept = keeper is not None and self._asker in (None, keeper)
        if self._is_kept:
            self._asker = keeper
        threading.Thread(target=self._watch, name="spare", daemon=True).start()

    def begin_runner(self, variables: dict[str, str]) -> None:
        """Have a runner started on this node, unless there is one for each replica that waits for its own."""
        roster = self._roster
        if roster is None:
            return
        if len(roster.spares(RUNNER)) + roster.num_coming(RUNNER) < len(roster.spares(self.kind)):
            with roster.asking(RUNNER):
                prestart(variables, int(UNKEPT_S), from_controller=False)

    def prepared(self) -> None:
        self._prepared = time.monotonic()
        if self._roster is not None and self._adopted is None:
            self._roster.ready(self.kind)

    def adopt(self) -> float:
        """When an actor got this process, which was a spare; 0 if it was started for the actor."""
        self._adopted = self._adopted or time.monotonic()
        self._leave()
        was_spare = self._prepared is not None and self._adopted - self._prepared > _IDLE_S
        return self._adopted if was_spare else 0.0

    def _watch(self) -> None:
        while self._adopted is None:
            time.sleep(_LOOK_S)
            if _has_an_actor():
                self.adopt()
            if self._adopted is not None:
                return
            unkept = not self._is_kept and time.monotonic() - self._began > UNKEPT_S
            if unkept or (self._asker is not None and has_ended(self._asker)):
                self._leave()
                os._exit(0)

    def _leave(self) -> None:
        if self._roster is not None:
            with contextlib.suppress(OSError):
                self._roster.leave(self.kind)


def _has_an_actor() -> bool:
    try:
        return ray.get_runtime_context().get_actor_id() is not None
    except Exception:  # Ray is not there yet, or no more
        return False


_process: _Process | None = None


def begin() -> None:
    """Called by Ray. Whatever fails here is tried again, and told of, where the engine starts."""
    global _process
    gc.disable()  # collections are a tenth of the imports' time, and find next to nothing
    try:
        told = json.loads(os.environ[VARIABLE])
        _process = _Process(told["kind"], told["group"])
        if told["kind"] == REPLICA:
            _begin_runner(_process, told["runner"])
        importlib.import_module(told["module"])
        if told["kind"] == RUNNER:
            from actors.engine.prepared import prepare
            from cluster.config import EngineConfig

            prepare(EngineConfig(**told["engine"]), told["on_gpu"])
        _process.prepared()
    except Exception:
        logger.exception("this process has prepared nothing")
    finally:
        gc.freeze()  # what was imported stays; no later collection walks through it
        gc.enable()


def _begin_runner(replica: _Process, variables: dict[str, str]) -> None:
    try:
        replica.begin_runner(variables)
    except Exception as error:  # it begins when the replica makes its actor
        logger.warning("event=no_early_runner error=%s: %s", type(error).__name__, error)


def adopted() -> float:
    """Called by the actor that has this process from now on.

    Returns:
        When it got it, in seconds of the monotonic clock, if it was a spare; else 0.
    """
    return _process.adopt() if _process is not None else 0.0
