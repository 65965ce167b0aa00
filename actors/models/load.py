"""From a configuration and a stream of weights to a model on a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from actors.device.cpu import CpuDevice
from actors.models.config import ModelConfig
from actors.models.decoder import Decoder
from cluster.process.cache import Progress
from gpu_ops.quantised.stored_rows import StoredRows


def load_model(
    config: ModelConfig,
    weights: Iterator[tuple[str, np.ndarray | StoredRows]],
    max_model_len: int,
    progress: Progress | None = None,
    device: CpuDevice | None = None,
) -> Decoder:
    """Build the model and move its weights in, one tensor at a time."""
    model = Decoder(config, max_model_len, device)
    model.load_weights(weights, progress)
    return model
