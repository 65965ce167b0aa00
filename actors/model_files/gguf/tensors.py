"""Tensors of a GGUF file, as float32 or as they are stored."""

from __future__ import annotations

import numpy as np

from actors.model_files.gguf.file import TENSOR_TYPES, GGUFTensor
from gpu_ops.quantised.stored_rows import StoredRows

_SLICE_BYTES = 4 << 20


def read_tensor(tensor: GGUFTensor) -> np.ndarray:
    """Return one tensor, dequantised: float32 with ``tensor.shape``.

    Blocks are unpacked in slices, so that the scratch memory of the arithmetic stays small beside the result.
    """
    type_name, block, block_bytes = TENSOR_TYPES[tensor.type_id]
    if type_name == "F32":
        return np.fromfile(tensor.path, "<f4", tensor.num_bytes // 4, offset=tensor.offset).reshape(tensor.shape)
    raw = np.memmap(tensor.path, np.uint8, "r", tensor.offset, (tensor.num_bytes,))
    if type_name == "F16":
        return raw.view("<f2").astype(np.float32).reshape(tensor.shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks = raw.reshape(-1, block_bytes)
    out = np.empty((len(blocks), block), np.float32)
    step = _SLICE_BYTES // (4 * block)
    for start in range(0, len(blocks), step):
        # As one row: the package goes through 16 rows at a time, which for rows of a small model is twice the work.
        row = np.asarray(blocks[start : start + step]).reshape(1, -1)
        out[start : start + step] = dequantize(row, GGMLQuantizationType(tensor.type_id)).reshape(-1, block)
    return out.reshape(tensor.shape)


def stored_rows(tensor: GGUFTensor) -> StoredRows:
    """A matrix in one of the formats of ``gpu_ops.quantised``, over the mapped file."""
    blocks = np.memmap(tensor.path, np.uint8, "r", tensor.offset, (tensor.num_bytes,)).view(np.ndarray)
    return StoredRows(TENSOR_TYPES[tensor.type_id][0], blocks.reshape(tensor.shape[0], -1))
