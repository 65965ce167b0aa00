"""Writes small GGUF files for tests, with the ``gguf`` package as the reference for the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

METADATA = {
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 1,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}


def tensor_shapes(vocab_size: int = 32) -> dict[str, tuple[int, ...]]:
    """Tensors of the model that METADATA describes, embeddings tied."""
    return {
        "token_embd.weight": (vocab_size, 64),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (32, 64),
        "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.ffn_gate.weight": (96, 64),
        "blk.0.ffn_up.weight": (96, 64),
        "blk.0.ffn_down.weight": (64, 96),
        "output_norm.weight": (64,),
    }


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Normal float32 values of these shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    arch: str = "llama",
    metadata: dict[str, Any] | None = None,
    qtype: str | Mapping[str, str] = "F32",
    extra: dict[str, Any] | None = None,
    split: int = 0,
) -> Path:
    """Write a file; matrices are stored as ``qtype`` or what that says for them, vectors as float32; ``extra`` keys get no
    architecture prefix.

    Args:
        split: most tensors of a part of a split model; 0 writes one file.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    items = {f"{arch}.{key}": value for key, value in (METADATA if metadata is None else metadata).items()}
    for key, value in {**items, **(extra or {})}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        own = qtype if isinstance(qtype, str) else qtype.get(name, "F32")
        kind = gguf.GGMLQuantizationType[own if tensor.ndim > 1 else "F32"]
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor(name, tensor.astype(np.float16 if kind.name == "F16" else np.float32))
        else:
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
