"""From settings to an engine that is ready for requests; the log says how far it is, and what it came to."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.engine.engine import Engine
from actors.engine.prepared import import_paddle
from actors.engine.warm_up import warm_up
from actors.model_files.source import ModelSource
from cluster.config import SIMULATED, EngineConfig
from gpu_ops.build import build

if TYPE_CHECKING:
    from actors.engine.kept_weights import WhenReady

logger = logging.getLogger("bireme.runner")

_BAR_WIDTH = 20


def start_engine(
    config: EngineConfig,
    engine_id: str,
    ended: Callable[[str], None] = lambda stage: None,
    find_model: Callable[[], ModelSource] | None = None,
    when_ready: list[WhenReady] | None = None,
) -> Engine:
    """Build the ops, load the model and run the warm-up requests.

    Args:
        ended: called with each of ``cluster.observability.start_stages.STAGES`` that is over.
        find_model: as in ``load_engine``.
        when_ready: receives what the caller begins once somebody can end the engine, should its weights turn out to be
            damaged; without it, that begins here and what it finds is in the log alone.
    Raises:
        ModelLoadError, ConfigError, OpBuildError: one message that says what to do.
    """
    started = time.monotonic()
    if config.device != SIMULATED:
        import_paddle()
        importlib.import_module("actors.engine.loading")
    ended("paddle")
    if config.device != SIMULATED:
        build(lambda name, done, total: logger.info("building native ops: %s (%d of %d)", name, done, total))
    ended("ops")
    logger.info("loading %s", config.model)
    begun_here: list[WhenReady] = []
    engine = _load(config, engine_id, ended, find_model, begun_here if when_ready is None else when_ready)
    ended("buffers")
    warm_up(engine)
    ended("warm_up")
    for begin in begun_here:
        begin(lambda error: None)
    info = engine.info
    logger.info(
        "%s is ready after %.1f s: %d KV blocks of %d tokens, up to %d tokens a request",
        info.model_id,
        time.monotonic() - started,
        info.num_blocks,
        info.block_size,
        info.max_model_len,
    )
    memory = engine.figures().get("memory")
    if memory:
        logger.info("%s: %s", engine.executor.device_name, _memory_text(memory))
    return engine


def _load(
    config: EngineConfig,
    engine_id: str,
    ended: Callable[[str], None],
    find_model: Callable[[], ModelSource] | None,
    when_ready: list[WhenReady],
) -> Engine:
    # Imported here: one of them loads Paddle.
    if config.device == SIMULATED:
        from actors.engine.load_simulated import load_simulated_engine

        return load_simulated_engine(config, engine_id, _log_progress, ended)
    from actors.engine.loading import load_engine

    return load_engine(config, engine_id, _log_progress, ended=ended, find_model=find_model, when_ready=when_ready)


def _log_progress(what: str, done: int, total: int) -> None:
    """A line per fifth of the work, with a bar."""
    if done == total or done % max(1, total // 5) == 0:
        filled = _BAR_WIDTH * done // max(1, total)
        logger.info("loading [%s%s] %d of %d %s", "#" * filled, "." * (_BAR_WIDTH - filled), done, total, what)


def _memory_text(memory: dict[str, int]) -> str:
    """How a GPU's memory is shared, for a person."""

    def gib(name: str) -> str:
        return f"{memory[name] / 2**30:.2f}"

    return (
        f"{gib('total_bytes')} GiB: weights {gib('weight_bytes')}, KV cache {gib('kv_cache_bytes')}, "
        f"{memory['num_graphs']} CUDA graphs {gib('graph_bytes')}, free {gib('free_bytes')}"
    )
