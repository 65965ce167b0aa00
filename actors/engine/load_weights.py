"""A model on a device with its weights: as an earlier start left them, else read, unpacked and packed."""

from __future__ import annotations

import logging

from actors.device.cpu import CpuDevice
from actors.engine.kept_weights import (
    CHECKED_FIRST_BYTES,
    WhenReady,
    check_later,
    is_sound,
    keep,
    ready_weights,
    tensors_of,
    weights_identity,
)
from actors.engine.prepared import take
from actors.model_files.formats.layout import expected_tensors
from actors.model_files.ready_weights import ReadyWeights
from actors.model_files.source import ModelSource
from actors.model_files.weight_format import kinds_in_use
from actors.model_files.weights import iter_stored_weights, iter_weights
from actors.models.config import ModelConfig
from actors.models.decoder import Decoder
from actors.models.load import load_model
from cluster.config import EngineConfig
from cluster.process.cache import Progress

logger = logging.getLogger("bireme.runner")


def load_weights(
    config: EngineConfig,
    source: ModelSource,
    model_config: ModelConfig,
    max_model_len: int,
    progress: Progress | None,
    device: CpuDevice,
    when_ready: list[WhenReady] | None = None,
) -> Decoder:
    """Build the model; the bits are the same either way.

    Args:
        when_ready: receives what is to be called once the engine is ready; without it nothing is kept for a later start.
    Raises:
        ModelLoadError: a tensor is missing, misshapen or of an unsupported type.
    """
    prepared = None if device.is_gpu else take(config, max_model_len, weights_identity(source, model_config))
    model = prepared or load_kept_weights(config, source, model_config, max_model_len, device, when_ready)
    if model is not None:
        return model
    kinds = kinds_in_use(config, source, model_config, device.is_gpu)
    weights = (
        iter_stored_weights(source, model_config, kinds) if kinds else iter_weights(source, model_config, device.dtype)
    )
    model = load_model(model_config, weights, max_model_len, progress, device)
    ready = _ready_weights(config, source, model_config, device)
    if ready is not None and when_ready is not None:
        try:
            when_ready.append(keep(ready, model))
        except RuntimeError as error:  # from the driver: no page-locked memory
            logger.warning("the next start will read the model's files again: %s", error)
    return model


def load_kept_weights(
    config: EngineConfig,
    source: ModelSource,
    model_config: ModelConfig,
    max_model_len: int,
    device: CpuDevice,
    when_ready: list[WhenReady] | None = None,
) -> Decoder | None:
    """The model as an earlier start left it; None where none did, or it is of no use.

    Args:
        when_ready: receives the check of a large file; without it each is checked first.
    """
    ready = _ready_weights(config, source, model_config, device)
    file = ready.find() if ready else None
    if file is None:
        return None
    checks_later = when_ready is not None and file.num_bytes > CHECKED_FIRST_BYTES
    if not checks_later and not is_sound(file):
        return None
    model = Decoder(model_config, max_model_len, device)
    try:
        kinds = kinds_in_use(config, source, model_config, device.is_gpu)
        model.take_ready_tensors(tensors_of(file, device), expected_tensors(model_config), kinds)
    except (OSError, ValueError, RuntimeError) as error:  # the last from the driver
        logger.warning("kept weights are not used: %s", error)
        return None
    if when_ready is not None and checks_later:
        when_ready.append(check_later(file))
    return model


def _ready_weights(
    config: EngineConfig, source: ModelSource, model_config: ModelConfig, device: CpuDevice
) -> ReadyWeights | None:
    return ready_weights(config, source, model_config, device.dtype, device.is_gpu)
