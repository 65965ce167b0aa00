"""NumPy twin of what the KV cache stores. Arrays have the cache's type: float32, uint16 for bfloat16, or int8."""

from __future__ import annotations

import numpy as np

from gpu_ops.kernel_limits import KV_SCALE_ROWS


def store(x: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors [..., D] as numbers of a type, and for int8 their scales [...], each made of its vector alone."""
    if dtype == np.float32:
        return x, None
    if dtype == np.uint16:
        return to_bfloat16(x), None
    largest = np.abs(x).max(axis=-1)
    is_finite = np.isfinite(x).all(axis=-1)
    scale = np.where(is_finite, largest / np.float32(127), np.float32(np.nan))
    usable = (is_finite & (scale > 0))[..., None]
    divided = np.where(usable, x, 0) / np.where(usable, scale[..., None], 1)
    # A scale in the subnormal range may be too small.
    return np.clip(np.rint(divided), -127, 127).astype(np.int8), scale


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper half of each float32 as uint16, to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return (np.where(np.isnan(x), bits | 0x400000, rounded) >> 16).astype(np.uint16)


def numbers(stored: np.ndarray) -> np.ndarray:
    """What stored numbers are as float32, before their scale."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def parts(k_cache: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Views of a key cache: keys [N, Hkv, D, entry], and for int8 the scales [N, Hkv, 2, entry] of its keys and values."""
    if k_cache.dtype != np.int8:
        return k_cache, None
    blocks, heads, rows, block_size = k_cache.shape
    scales = k_cache.reshape(blocks, heads, -1)[:, :, (rows - KV_SCALE_ROWS) * block_size :].view(np.float32)
    return k_cache[:, :, :-KV_SCALE_ROWS], scales.reshape(blocks, heads, 2, block_size)
