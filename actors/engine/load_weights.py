"""A model on a device with its weights: mapped as an earlier start left them, else read, unpacked and packed."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

import actors
from actors.device.cpu import CpuDevice
from actors.engine.prepared import take
from actors.model_files.formats.layout import expected_tensors
from actors.model_files.ready_weights import ReadyWeights
from actors.model_files.source import ModelSource
from actors.model_files.weights import iter_weights, weights_fingerprint
from actors.models.config import ModelConfig
from actors.models.decoder import Decoder
from actors.models.load import load_model
from cluster.config import EngineConfig
from cluster.process.cache import Progress
from gpu_ops.sources import sources_hash

logger = logging.getLogger("bireme.runner")

# What turns a model's files into what the ops read.
_LOADING_CODE = ("model_files", "models", "layers")


def load_weights(
    config: EngineConfig,
    source: ModelSource,
    model_config: ModelConfig,
    max_model_len: int,
    progress: Progress | None,
    device: CpuDevice,
) -> Decoder:
    """Build the model; the bits are the same either way.

    Raises:
        ModelLoadError: a tensor is missing, misshapen or of an unsupported type.
    """
    prepared = None if device.is_gpu else take(config, max_model_len)
    model = prepared or load_kept_weights(config, source, model_config, max_model_len, device)
    if model is not None:
        return model
    ready = _ready_weights(config, source, model_config, device)
    model = load_model(model_config, iter_weights(source, model_config, device.dtype), max_model_len, progress, device)
    if ready:
        # Beside the start: nobody writes to the model's memory. A process that ends meanwhile leaves a part that is never read.
        threading.Thread(target=ready.write, args=(model.ready_arrays(),), name="ready-weights", daemon=True).start()
    return model


def load_kept_weights(
    config: EngineConfig, source: ModelSource, model_config: ModelConfig, max_model_len: int, device: CpuDevice
) -> Decoder | None:
    """The model as an earlier start left it, mapped; None where none did, or it is of no use."""
    ready = _ready_weights(config, source, model_config, device)
    arrays = ready.read() if ready else None
    if arrays is None:
        return None
    model = Decoder(model_config, max_model_len, device)
    try:
        model.take_ready_arrays(arrays, expected_tensors(model_config))
    except ValueError as error:
        logger.warning("kept weights are not used: %s", error)
        return None
    return model


def _ready_weights(
    config: EngineConfig, source: ModelSource, model_config: ModelConfig, device: CpuDevice
) -> ReadyWeights | None:
    if device.is_gpu or source.kind == "dummy":
        return None
    key = [weights_fingerprint(source), sources_hash(), _loading_code_hash(), repr(model_config)]
    return ReadyWeights("\0".join(key), int(config.ready_weights_gb * 2**30))


def _loading_code_hash() -> str:
    digest = hashlib.sha256()
    folder = Path(actors.__path__[0])
    for room in _LOADING_CODE:
        for path in sorted((folder / room).rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
