"""NumPy twin of the block op, in terms of the twins of the single ops."""

from __future__ import annotations

import numpy as np

from gpu_ops.twins import forward as twins


def fused_layer(
    hidden: np.ndarray,
    residual: np.ndarray,
    *,
    qkv: np.ndarray,
    o: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    post_attention_norm: np.ndarray,
    next_norm: np.ndarray,
    cos_sin: np.ndarray,
    positions: np.ndarray,
    batch_id_per_token: np.ndarray,
    block_tables: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    q_heads: int,
    kv_heads: int,
    eps: float,
    scale: float,
    qkv_bias: np.ndarray | None = None,
    q_norm: np.ndarray | None = None,
    k_norm: np.ndarray | None = None,
    o_bias: np.ndarray | None = None,
    gate_up_bias: np.ndarray | None = None,
    down_bias: np.ndarray | None = None,
) -> np.ndarray:
    """Attention, then feed-forward; each adds to the residual in place and hands on its norm."""
    heads, size, place = (q_heads, kv_heads), hidden.shape[1], (positions, batch_id_per_token, block_tables)
    projected = twins.linear(hidden, qkv, (q_heads + 2 * kv_heads) * cos_sin.shape[1], qkv_bias)
    if q_norm is not None and k_norm is not None:
        twins.qk_norm(projected, q_norm, k_norm, *heads, eps)
    twins.rotary_kv_write(projected, cos_sin, *place, k_cache, v_cache, *heads)
    attended = twins.paged_attention(
        projected, k_cache, v_cache, block_tables, positions, batch_id_per_token, *heads, scale
    )
    hidden = twins.add_rms_norm(twins.linear(attended, o, size, o_bias), residual, post_attention_norm, eps)
    activated = twins.swiglu(twins.linear(hidden, gate_up, 2 * down.shape[1], gate_up_bias))
    return twins.add_rms_norm(twins.linear(activated, down, size, down_bias), residual, next_norm, eps)
