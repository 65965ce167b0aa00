"""What the engines of a server say of their start, asked without ever waiting for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from cluster.observability.start_stages import READY, STAGES
from deployments.commands.serving.start_view import StartView

# What a person calls the stages of ``start_stages``.
_NAMES = {
    "replica": "engine: process",
    "runner": "engine: runner process",
    "paddle": "engine: Paddle",
    "ops": "engine: native ops",
    "weights": "engine: weights",
    "buffers": "engine: memory",
    "warm_up": "engine: warm-up, compile",
    READY: "engine: ready",
}
_SHOWN_FROM_S = 0.05
_POLL_S = 0.02


class EngineStarts:
    """Of the first engine that is seen; others start beside it.

    Attributes:
        stats: what it said last (``RunnerActor.stats``); empty before it is there.
    """

    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}
        self._runner: Any = None
        self._asked: Any = None
        self._num_shown = 0

    def look(self) -> None:
        """Take the answer to the last question, if it is there, and ask again."""
        import ray

        if self._asked is not None:
            if not ray.wait([self._asked], timeout=0)[0]:
                return
            asked, self._asked = self._asked, None
            try:
                self.stats = ray.get(asked)
            except ray.exceptions.RayError:
                self._runner = None  # it died, and another one comes
        if self._runner is None:
            self._runner = _first_runner()
        if self._runner is not None:
            self._asked = self._runner.stats.remote()

    def wait(self, patience_s: float) -> None:
        """Until the engine says what it computes with, or in vain."""
        deadline = time.monotonic() + patience_s
        while "num_blocks" not in self.stats and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            self.look()

    def show(self, view: StartView) -> None:
        """Lines of the stages that have ended since the last call; what goes on, below them."""
        start = self.stats.get("start")
        if not start:
            view.tick()
            return
        ended = ended_stages(start)
        for name, seconds in ended[self._num_shown :]:
            view.took(name, seconds)
        self._num_shown = max(self._num_shown, len(ended))
        view.tick(start["detail"] or (start["stage"] or "").replace("_", "-"))


def ended_stages(start: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name and seconds of the stages of ``StartStages.figures`` that are over, in order; what took no time is left out."""
    seconds = start["seconds"]
    return [
        (_NAMES[stage], seconds[stage])
        for stage in STAGES
        if stage in _NAMES and seconds.get(stage, 0.0) >= _SHOWN_FROM_S
    ]


def _first_runner() -> Any:
    import ray

    from deployments.replica.engine_replica import RUNNER_NAME_PREFIX

    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(RUNNER_NAME_PREFIX):
            with contextlib.suppress(ValueError):  # it ended in between
                return ray.get_actor(actor["name"], actor["namespace"])
    return None
