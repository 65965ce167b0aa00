"""Tensors of a GGUF file as float32."""

from __future__ import annotations

import numpy as np

from actors.model_files.gguf.file import TENSOR_TYPES, GGUFTensor

_ROWS_BYTES = 32 << 20


def read_tensor(tensor: GGUFTensor) -> np.ndarray:
    """Return one tensor, dequantised: float32 with ``tensor.shape``.

    Rows are unpacked in slices, so that the scratch memory of the arithmetic stays small beside the result.
    """
    type_name, block, block_bytes = TENSOR_TYPES[tensor.type_id]
    if type_name == "F32":
        return np.fromfile(tensor.path, "<f4", tensor.num_bytes // 4, offset=tensor.offset).reshape(tensor.shape)
    raw = np.memmap(tensor.path, np.uint8, "r", tensor.offset, (tensor.num_bytes,))
    if type_name == "F16":
        return raw.view("<f2").astype(np.float32).reshape(tensor.shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    row_bytes = tensor.shape[-1] // block * block_bytes
    rows = raw.reshape(-1, row_bytes)
    out = np.empty((len(rows), tensor.shape[-1]), np.float32)
    step = max(1, _ROWS_BYTES // (4 * tensor.shape[-1]))
    for start in range(0, len(rows), step):
        out[start : start + step] = dequantize(
            np.asarray(rows[start : start + step]), GGMLQuantizationType(tensor.type_id)
        )
    return out.reshape(tensor.shape)
