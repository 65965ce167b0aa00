"""Weights of a model as NumPy arrays under Hugging Face names, whatever file they come from."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from actors.model_files.dummy import dummy_tensor
from actors.model_files.file_hash import content_id
from actors.model_files.formats.layout import (
    expected_tensors,
    folded_factor,
    gguf_name,
    rotated_heads,
    to_half_rotation,
)
from actors.model_files.formats.number_types import convert
from actors.model_files.formats.paddle_layout import PaddleTensor, from_paddle_layout, is_paddle_layout
from actors.model_files.formats.safetensors import ITEM_BYTES, SafeTensor, read_header
from actors.model_files.gguf.file import read_gguf
from actors.model_files.gguf.tensors import read_tensor, stored_rows
from actors.model_files.source import ModelSource
from actors.model_files.unread import ReadKeys, report_unread_tensors
from actors.models.config import ModelConfig
from cluster.errors import ModelLoadError
from gpu_ops.quantised.stored_rows import StoredRows

DTYPES = ("float32", "float16", "bfloat16")
Loader = Callable[[], np.ndarray]
_Find = Callable[[str], tuple[tuple[int, ...], Loader]]
# A GPU is fed faster than one core reads and converts; more tensors at once would only cost memory.
_MAX_WORKERS = 8


def iter_weights(source: ModelSource, config: ModelConfig, dtype: str = "float32") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, tensor) for every tensor of the model; float32 ones one in memory at a time.

    Names and shapes are checked before the first tensor is read. Rows of q and k are always in half-rotation order, and
    multipliers of the configuration are folded in (layout.folded_factor).

    Args:
        dtype: one of DTYPES; bfloat16 comes as uint16 bit patterns (rounded to nearest even), NumPy having no such type.
    Raises:
        ModelLoadError: a tensor is missing, misshapen or of an unsupported type; the message names it.
    """
    if str(dtype) not in DTYPES:
        raise ModelLoadError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}", "dtype")
    loaders = _loaders(source, config, str(dtype))
    if dtype == "float32":
        return ((name, loader()) for name, loader in loaders)
    return _in_parallel(loaders)


def iter_stored_weights(
    source: ModelSource, config: ModelConfig, kinds: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray | StoredRows]]:
    """``iter_weights`` in float32, but for the matrices that ``kinds`` names (``weight_format.stored_kinds``) as the file stores
    them."""
    tensors = read_gguf(source.path).tensors if kinds else {}
    for name, loader in _loaders(source, config, "float32"):
        if name not in kinds:
            yield name, loader()
            continue
        rows = stored_rows(tensors[gguf_name(name, config)])
        heads = rotated_heads(name, config) if config.rope_interleaved else 0
        blocks = to_half_rotation(rows.blocks, heads) if heads else rows.blocks
        yield name, StoredRows(rows.kind, blocks, folded_factor(name, config))


def num_weight_elements(config: ModelConfig) -> int:
    """Return how many numbers the model's weights are."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())


def weights_fingerprint(source: ModelSource) -> str:
    """Return 32 hex digits that are equal on every machine where the same model would compute the same thing.

    Covers the weight files' content (see file_hash.content_id) and config.json; for dummy weights, configuration and seed.
    """
    digest = hashlib.sha256(f"{'dummy' if source.kind == 'dummy' else 'stored'}\0{source.seed}".encode())
    if source.is_gguf and source.kind == "dummy":
        digest.update(content_id(source.path).encode())
    elif not source.is_gguf:
        digest.update(content_id(source.path / "config.json").encode())
    for file in source.weight_files():
        digest.update(b"\0" + content_id(file).encode())
    return digest.hexdigest()[:32]


def _in_parallel(loaders: list[tuple[str, Loader]]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in order, a few of them read and converted ahead."""
    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    ahead: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        for name, loader in loaders:
            ahead.append((name, pool.submit(loader)))
            if len(ahead) > workers:
                name, tensor = ahead.popleft()
                yield name, tensor.result()
        for name, tensor in ahead:
            yield name, tensor.result()


def _loaders(source: ModelSource, config: ModelConfig, dtype: str) -> list[tuple[str, Loader]]:
    expected = expected_tensors(config)
    if source.kind == "dummy":
        return [
            (name, partial(_dummy_tensor, name, shape, source.seed, folded_factor(name, config), dtype))
            for name, shape in expected.items()
        ]
    find, table = _find_in_gguf(source, config) if source.kind == "gguf" else _find_in_safetensors(source, expected)
    loaders: list[tuple[str, Loader]] = []
    for name, shape in expected.items():
        found, loader = find(name)
        if found != shape:
            raise ModelLoadError(
                f"{source.path}: tensor {name} has shape {list(found)}, the configuration wants {list(shape)}: "
                "weights and configuration do not belong together.",
                "model",
            )
        heads = rotated_heads(name, config) if config.rope_interleaved else 0
        loaders.append((name, partial(_stored_tensor, loader, heads, folded_factor(name, config), dtype)))
    unread = [name for name, tensor in table.unread.items() if not _is_zero_bias(name, tensor)]
    report_unread_tensors(unread, config.tie_word_embeddings, source.path)
    return loaders


def _is_zero_bias(name: str, tensor: SafeTensor | PaddleTensor | Loader) -> bool:
    """Some converters write a bias for every projection."""
    if not name.endswith(".bias"):
        return False
    if isinstance(tensor, (SafeTensor, PaddleTensor)):
        return tensor.dtype in ITEM_BYTES and not tensor.read().any()
    return not tensor().any()


def _find_in_gguf(source: ModelSource, config: ModelConfig) -> tuple[_Find, ReadKeys]:
    file = read_gguf(source.path)
    table = ReadKeys({name: partial(read_tensor, tensor) for name, tensor in file.tensors.items()})
    table.get("rope_freqs.weight")  # the configuration has read it

    def find(name: str) -> tuple[tuple[int, ...], Loader]:
        stored = gguf_name(name, config)
        loader = table.get(stored)
        if loader is None:
            raise _missing(source, f"{stored} ({name})")
        return file.tensors[stored].shape, loader

    return find, table


def _find_in_safetensors(source: ModelSource, expected: dict[str, tuple[int, ...]]) -> tuple[_Find, ReadKeys]:
    stored: dict[str, SafeTensor] = {}
    for path in source.weight_files():
        stored.update(read_header(path))
    table = ReadKeys(from_paddle_layout(stored, expected) if is_paddle_layout(stored, expected) else stored)

    def find(name: str) -> tuple[tuple[int, ...], Loader]:
        tensor = table.get(name) or table.get(name.removeprefix("model."))  # base models are saved without the prefix
        if tensor is None:
            raise _missing(source, name)
        if tensor.dtype not in ITEM_BYTES:
            raise ModelLoadError(
                f"{tensor.path}: tensor {name} has dtype {tensor.dtype}; supported: {', '.join(ITEM_BYTES)}.", "model"
            )
        return tensor.shape, tensor.read

    return find, table


def _missing(source: ModelSource, name: str) -> ModelLoadError:
    return ModelLoadError(
        f"{source.path} has no tensor {name}: the file is incomplete or of another architecture than it says.", "model"
    )


def _stored_tensor(loader: Loader, heads: int, factor: float, dtype: str) -> np.ndarray:
    tensor = loader()
    return _scaled(to_half_rotation(tensor, heads) if heads else tensor, factor, dtype)


def _dummy_tensor(name: str, shape: tuple[int, ...], seed: int, factor: float, dtype: str) -> np.ndarray:
    if factor == 1:
        return dummy_tensor(name, shape, seed, dtype)
    return _scaled(dummy_tensor(name, shape, seed), factor, dtype)


def _scaled(tensor: np.ndarray, factor: float, dtype: str) -> np.ndarray:
    """Before the conversion, so that a 16-bit number is rounded once."""
    return convert(tensor if factor == 1 else tensor * np.float32(factor), dtype)
