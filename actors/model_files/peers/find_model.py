"""Where a model's files come from: this machine, another node's engine, what such a one gave earlier, the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from actors.model_files.download.default_model import is_default_model
from actors.model_files.peers.receiver import FileReceiver, Received
from actors.model_files.peers.replies import Peers, State
from actors.model_files.source import ModelSource, model_of
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.errors import ModelNotHereError
from cluster.process.cache import Progress

logger = logging.getLogger("bireme.runner")

_FIRST = frozenset({State.HASHING, State.BUSY})
# Where the hub has no answer either, those are waited for that may turn out to have the files.
_LAST = _FIRST | {State.STARTING}


class Found(NamedTuple):
    """The model's files, and from whom they came, if from another node."""

    source: ModelSource
    received: Received | None = None


def model_settings(config: EngineConfig) -> tuple[str, ...]:
    """Under which names a model is known: equal in engines that may have each other's files."""
    return config.model, config.tokenizer or "", config.load_format


def find_model(
    config: EngineConfig,
    peers: Peers | None,
    progress: Progress | None = None,
    searching: Callable[[], None] = lambda: None,
) -> Found:
    """Find the model's files, and bring them here if they are elsewhere.

    Args:
        peers: other nodes; None where there are none.
        progress: called as ``progress(what, bytes done, bytes in all)`` while something comes from elsewhere.
        searching: called once when this machine has no files.

    Raises:
        ModelLoadError: with one message that says what is wrong and what to do.
    """
    if peers is None or not config.weights_from_peers:
        return Found(model_of(config, progress))
    try:
        return Found(model_of(config, None, download=False))
    except ModelNotHereError:
        searching()
    receiver = FileReceiver(model_settings(config), progress)
    if not receiver.may_be_used:
        logger.warning("nothing is taken from other nodes: other users may write to this one's cache folder")
        return Found(model_of(config, progress))
    if (received := _receive(config, receiver, peers, _FIRST)) is not None:
        return received
    kept = receiver.kept()
    if kept is not None and _is_wanted(config, kept[1]):
        return Found(_with_seed(config, kept[1]))
    try:
        return Found(model_of(config, progress))
    except ModelNotHereError:
        if (received := _receive(config, receiver, peers, _LAST)) is not None:
            return received
        raise


def find_here(config: EngineConfig) -> ModelSource | None:
    """The model's files as they are on this machine now, a copy from another node among them; nobody is asked for them.

    Raises:
        ModelLoadError: they are of no use.
    """
    try:
        return model_of(config, None, download=False)
    except ModelNotHereError:
        receiver = FileReceiver(model_settings(config))
        kept = receiver.kept() if config.weights_from_peers and receiver.may_be_used else None
        return _with_seed(config, kept[1]) if kept is not None and _is_wanted(config, kept[1]) else None


def _receive(config: EngineConfig, receiver: FileReceiver, peers: Peers, wait_for: frozenset[State]) -> Found | None:
    received = receiver.receive(peers, wait_for)
    if received is None:
        return None
    if not _is_wanted(config, received.source):
        logger.warning("node %s has another model than it says", received.node)
        return None
    logger.info(
        "event=model_files_received node=%s bytes=%d seconds=%.2f", received.node, received.num_bytes, received.seconds
    )
    return Found(_with_seed(config, received.source), received)


def _is_wanted(config: EngineConfig, source: ModelSource) -> bool:
    if (source.kind == "dummy") != (config.load_format == "dummy"):
        return False
    named = ((config.model, source.path), (config.tokenizer, source.tokenizer))
    return all(path is not None and is_default_model(path) for name, path in named if name == DEFAULT_MODEL)


def _with_seed(config: EngineConfig, source: ModelSource) -> ModelSource:
    return replace(source, seed=config.dummy_seed) if source.kind == "dummy" else source
