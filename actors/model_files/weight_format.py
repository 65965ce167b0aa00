"""The setting ``weight_format``: which of a model's matrices are computed with as the file stores them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from actors.model_files.formats.layout import expected_tensors, gguf_name
from actors.model_files.gguf.file import TENSOR_TYPES, read_gguf
from actors.model_files.source import ModelSource
from actors.models.config import ModelConfig
from cluster.config import EngineConfig
from cluster.errors import ConfigError
from gpu_ops.quantised.packing import packed_bytes
from gpu_ops.quantised.stored_rows import BLOCK_INPUTS, BLOCK_TYPES

# Projections of a layer that are one matmul: either all of them keep the file's format or none does.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def is_stored(config: EngineConfig, source: ModelSource, on_gpu: bool) -> bool:
    """Whether matrices of these files are computed with as they are stored.

    Raises:
        ConfigError: ``weight_format`` asks for what the device or the files do not have.
    """
    wanted = config.weight_format
    if wanted == "float32" or (on_gpu and wanted == "auto"):
        return False
    if on_gpu:
        raise _refused("a GPU computes in its own type")
    # Of a file that is looked at without its weights (``bireme config check``) the table of tensors counts as well.
    from_file = source.is_gguf and config.load_format != "dummy"
    tensors = read_gguf(source.path).tensors.values() if from_file else ()
    found = {
        TENSOR_TYPES[tensor.type_id][0]
        for tensor in tensors
        if len(tensor.shape) == 2 and tensor.shape[1] % BLOCK_INPUTS == 0
    } & BLOCK_TYPES.keys()
    if not found and wanted == "stored":
        raise _refused(f"the model has no weights of {', '.join(BLOCK_TYPES)}")
    return bool(found)


def stored_kinds(source: ModelSource, model_config: ModelConfig) -> dict[str, str]:
    """Hugging Face name of each matrix of a GGUF file that is computed with as it is stored, and its key of BLOCK_TYPES."""
    tensors, kinds = read_gguf(source.path).tensors, {}
    for name, shape in expected_tensors(model_config).items():
        tensor = tensors.get(gguf_name(name, model_config))
        if len(shape) == 2 and tensor is not None and tensor.shape == shape:
            kinds[name] = TENSOR_TYPES[tensor.type_id][0]
    kinds = {
        name: kind
        for name, kind in kinds.items()
        if kind in BLOCK_TYPES and tensors[gguf_name(name, model_config)].shape[1] % BLOCK_INPUTS == 0
    }
    return {name: kind for name, kind in kinds.items() if all(other in kinds for other in _of_one_matmul(name))}


def kinds_in_use(config: EngineConfig, source: ModelSource, model_config: ModelConfig, on_gpu: bool) -> dict[str, str]:
    """``stored_kinds`` where ``is_stored``, else none."""
    return stored_kinds(source, model_config) if is_stored(config, source, on_gpu) else {}


def weight_bytes(model_config: ModelConfig, kinds: Mapping[str, str], item_bytes: int) -> int:
    """Of a model's weights in memory, where those of ``kinds`` are stored and the others numbers of ``item_bytes``."""
    return sum(
        packed_bytes([(kinds[name], shape[0])], shape[1]) if name in kinds else item_bytes * prod(shape)
        for name, shape in expected_tensors(model_config).items()
    )


def _of_one_matmul(name: str) -> list[str]:
    """Names of the weights that are multiplied together with that one, itself among them."""
    owner, _, projection = name.removesuffix(".weight").rpartition(".")
    for group in _TOGETHER:
        if projection in group:
            return [f"{owner}.{other}.weight" for other in group]
    return [name]


def _refused(why: str) -> ConfigError:
    return ConfigError(f"weight_format: {why}, got stored; allowed here: auto, float32", "weight_format")
