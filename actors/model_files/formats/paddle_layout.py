"""Checkpoints in Paddle's own layout, as the -Paddle repositories of ERNIE 4.5 have it, under Hugging Face names and shapes.

Linear weights are stored [in, out]. ERNIE's names begin with ``ernie.``, q, k and v are one tensor, and so are gate and up.
bfloat16 may be stored as the 16-bit integers that NumPy has for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.model_files.formats.safetensors import SafeTensor

# Joined tensor to the Hugging Face modules that it holds, in order of columns.
_JOINED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.up_gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
_PREFIX = "ernie."
_TABLES = ("embed_tokens.weight",)


@dataclass(frozen=True, slots=True)
class PaddleTensor:
    """Some columns of a stored tensor, turned round; as SafeTensor it can be asked for shape, dtype and values."""

    stored: SafeTensor
    columns: slice
    transposed: bool

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = (*self.stored.shape[:-1], len(range(*self.columns.indices(self.stored.shape[-1]))))
        return shape[::-1] if self.transposed else shape

    def read(self) -> np.ndarray:
        """Return it as float32 with ``shape``."""
        values = self.stored.read()[..., self.columns]
        return np.ascontiguousarray(values.T if self.transposed else values)


def is_paddle_layout(stored: Mapping[str, SafeTensor], expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a checkpoint is laid out so: by its names, or because its matrices lie the other way round."""
    if any(name.startswith(_PREFIX) or any(f".{joined}." in name for joined in _JOINED) for name in stored):
        return True
    turned = {
        stored[name].shape == shape[::-1]
        for name, shape in expected.items()
        if _is_linear(name, shape) and shape[0] != shape[1] and name in stored
    }
    return turned == {True}


def from_paddle_layout(
    stored: Mapping[str, SafeTensor], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, PaddleTensor]:
    """Return {Hugging Face name: tensor}; what no name is known for keeps its own."""
    tensors: dict[str, PaddleTensor] = {}
    for name, entry in stored.items():
        tensor = replace(entry, dtype="BF16") if entry.dtype == "U16" else entry
        hf_name = "model." + name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else name
        module, _, kind = hf_name.rpartition(".")
        joined = next((joined for joined in _JOINED if module.endswith(f".{joined}")), None)
        members = [hf_name]
        if joined is not None:
            members = [f"{module.removesuffix(joined)}{member}.{kind}" for member in _JOINED[joined]]
        start = 0
        for member in members:
            shape = expected.get(member, ())
            width = shape[0] if joined is not None and shape else math.prod(tensor.shape[-1:])
            # The last member takes what is left, so that a width that does not fit shows in its shape.
            stop = None if member == members[-1] else start + width
            tensors[member] = PaddleTensor(tensor, slice(start, stop), _is_linear(member, tensor.shape))
            start += width
    return tensors


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith(".weight") and not name.endswith(_TABLES)
