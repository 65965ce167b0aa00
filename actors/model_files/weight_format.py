"""The setting ``weight_format``: which of a model's matrices are computed with as the file stores them."""

from __future__ import annotations

from actors.model_files.formats.layout import expected_tensors, gguf_name
from actors.model_files.gguf.file import TENSOR_TYPES, read_gguf
from actors.model_files.source import ModelSource
from actors.models.config import ModelConfig
from cluster.config import EngineConfig
from cluster.errors import ConfigError
from gpu_ops.quantised.stored_rows import BLOCK_TYPES


def is_stored(config: EngineConfig, source: ModelSource, on_gpu: bool) -> bool:
    """Whether matrices of these files are computed with as they are stored.

    Raises:
        ConfigError: ``weight_format`` asks for what the device or the files do not have.
    """
    if config.weight_format != "stored":
        return False
    if on_gpu:
        raise _refused("a GPU computes in its own type")
    kinds = (
        {TENSOR_TYPES[tensor.type_id][0] for tensor in read_gguf(source.path).tensors.values()}
        if source.kind == "gguf"
        else set()
    )
    if not kinds & BLOCK_TYPES.keys():
        raise _refused(f"the model has no weights of {', '.join(BLOCK_TYPES)}")
    return True


def stored_kinds(source: ModelSource, model_config: ModelConfig) -> dict[str, str]:
    """Hugging Face name of each matrix of a GGUF file that is in one of the formats of BLOCK_TYPES, and which."""
    tensors, kinds = read_gguf(source.path).tensors, {}
    for name, shape in expected_tensors(model_config).items():
        tensor = tensors.get(gguf_name(name, model_config))
        if len(shape) == 2 and tensor is not None and tensor.shape == shape:
            kinds[name] = TENSOR_TYPES[tensor.type_id][0]
    return {name: kind for name, kind in kinds.items() if kind in BLOCK_TYPES}


def _refused(why: str) -> ConfigError:
    return ConfigError(f"weight_format: {why}, got stored; allowed here: auto, float32", "weight_format")
