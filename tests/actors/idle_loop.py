"""An engine that does nothing, with all that serves it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

from actors.scheduling.queue_state import QueueState
from actors.serving_engine import ServingEngine
from cluster.config import EngineConfig


class IdleLoop:
    """Stands for ``EngineLoop``: takes what it is given, and does nothing about it."""

    computes_prefill, error, num_steps, queue_age_s = False, None, 0, 0.0

    def __init__(self, queue: QueueState | None = None) -> None:
        self.queue, self.queue_times = queue or QueueState(), ((), 0.0)

    def seconds_in_step(self) -> float:
        return 0.0

    def take_queue_time(self, request_id: str) -> float:
        return 0.0

    def call(self, function: Callable[[Any], Any]) -> Future:
        return Future()

    def post(self, function: Callable[[Any], Any], failed: Callable[[BaseException], None]) -> None:
        pass

    def abort(self, request_id: str, attempt: int) -> Future:
        return Future()

    def close(self) -> None:
        pass


def serve(engine_loop: IdleLoop, engine_id: str = "engine", **settings: Any) -> ServingEngine:
    """It serves on the running loop; to be closed."""
    engine = SimpleNamespace(
        info=SimpleNamespace(engine_id=engine_id, fingerprint="f"),
        is_ready_for_grammars=True,
        compile_grammar=lambda request: None,
        get_ready_for_grammars=lambda: None,
    )
    config = EngineConfig(model="m", load_format="dummy", **settings)
    return ServingEngine(config, cast(Any, engine), cast(Any, lambda *callbacks: engine_loop))
