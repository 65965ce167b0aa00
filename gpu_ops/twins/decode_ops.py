"""NumPy twins of ``gpu_ops.decode_ops``: the layers they fold together, one after the other."""

from __future__ import annotations

import numpy as np

from gpu_ops.twins import forward


def small_batch_linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    norm_weight: np.ndarray | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
) -> np.ndarray:
    """norm(x) W^T + bias, and swiglu of that."""
    if norm_weight is not None:
        x = forward.rms_norm(x, norm_weight, eps)
    y = x @ weight.T
    if bias is not None:
        y = y + bias
    return forward.swiglu(y) if swiglu else y


def add_small_batch_linear(
    x: np.ndarray, weight: np.ndarray, residual: np.ndarray, bias: np.ndarray | None = None
) -> None:
    """residual += x W^T + bias."""
    residual += small_batch_linear(x, weight, bias)


def decode_attention(
    qkv: np.ndarray,
    cos_sin: np.ndarray,
    positions: np.ndarray,
    batch_id_per_token: np.ndarray,
    block_tables: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    q_heads: int,
    kv_heads: int,
    scale: float,
) -> np.ndarray:
    """Rotary embedding, cache write, attention; caches as on the CPU, [.., D, entry] and [.., entry, D]."""
    qkv, heads = qkv.copy(), (q_heads, kv_heads)
    forward.rotary_kv_write(qkv, cos_sin, positions, batch_id_per_token, block_tables, k_cache, v_cache, *heads)
    return forward.paged_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, *heads, scale)
