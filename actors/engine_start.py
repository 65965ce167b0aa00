"""How an engine comes to be in this process: its model's files, the engine itself, and what each stage of the start took."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.model_files.peers.find_model import Found, find_model, model_settings
from actors.model_files.peers.replies import Peers
from actors.model_files.peers.sender import FileSender
from actors.model_files.source import ModelSource
from cluster.config import EngineConfig
from cluster.observability.start_stages import StartStages, start_fields
from cluster.process.freeze_gc import freeze_gc
from cluster.process.logs import log_fields

if TYPE_CHECKING:
    from actors.engine.engine import Engine
    from actors.engine.kept_weights import WhenReady

logger = logging.getLogger("bireme.runner")


class EngineStart:
    """One start of one engine.

    Args:
        config: settings of the engine.
        engine_id: name in metrics and logs.
        stages: what of this start is over; None if it begins here.
        peers: other nodes' engines, asked when the model is looked for; None where there are none.

    Attributes:
        stages: what of it is over.
        files: what this engine offers of its model to others, from before it is ready itself.
    """

    def __init__(
        self, config: EngineConfig, engine_id: str, stages: StartStages | None, peers: Callable[[], Peers | None]
    ) -> None:
        self.stages = stages or StartStages(time.monotonic())
        self.ended("runner")
        self._config = config
        self._engine_id = engine_id
        self._peers = peers
        self.files = FileSender(model_settings(config))
        self._found: Found | None = None
        self._when_ready: list[WhenReady] = []

    def ended(self, stage: str) -> None:
        """A stage of ``cluster.observability.start_stages.STAGES`` is over."""
        self.stages.end(stage, time.monotonic())

    def load(self) -> Engine:
        """Build the ops, load the model, run the warm-up requests. Blocks, for tens of seconds.

        Raises:
            ModelLoadError, ConfigError, OpBuildError: one message that says what to do.
        """
        # Imported here: Ray imports this module wherever the actor's class is known, and only the runner's process needs Paddle.
        from actors.engine.starting import start_engine

        # A thread that waits for the interpreter lock gets it after this time; steps are tens of milliseconds.
        sys.setswitchinterval(0.0005)
        engine = start_engine(self._config, self._engine_id, self.ended, self._find_model, self._when_ready)
        freeze_gc()
        return engine

    def complete(self, fail: Callable[[BaseException], None]) -> None:
        """The engine runs: what was put off until somebody can end it begins now.

        Args:
            fail: ends the engine.
        """
        for begin in self._when_ready:
            begin(fail)
        self.ended("ready")
        logger.info("event=engine_ready %s", log_fields(engine=self._engine_id, **start_fields(self.figures())))

    def figures(self) -> dict[str, Any]:
        """``StartStages.figures`` by now."""
        return self.stages.figures(time.monotonic())

    def file_figures(self) -> dict[str, Any]:
        """What model files went to other nodes; and which came from one, if they did."""
        received = None if self._found is None else self._found.received
        came = {} if received is None else {"model_files_from": received.figures()}
        return {"num_model_bytes_sent": self.files.num_bytes_sent, **came}

    def _find_model(self) -> ModelSource:
        self._found = find_model(self._config, self._peers(), self._tell_progress, self.files.is_searching)
        # Before the engine is ready: others can begin meanwhile.
        if self._config.weights_from_peers:
            self.files.offer(self._found.source)
        return self._found.source

    def _tell_progress(self, what: str, done: int, total: int) -> None:
        self.stages.tell(f"{what}, {100 * done // total} %" if total else what)
