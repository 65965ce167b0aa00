"""float32 arrays as the number types that models compute in; NumPy itself has no bfloat16."""

from __future__ import annotations

import numpy as np


def convert(tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A contiguous float32 array as float32, float16, or the bit patterns of bfloat16 (rounded to nearest even)."""
    if dtype == "float32":
        return np.ascontiguousarray(tensor)
    if dtype == "float16":
        return tensor.astype(np.float16, order="C")
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(tensor), np.uint16(0x7FC0), rounded)
