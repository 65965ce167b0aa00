"""One decoder block as a single op. It calls the kernels of ``gpu_ops.forward`` in turn and gives the same bits.

A custom-op call costs Paddle about 10 us; nine of them a block are a tenth of a decode step of a small model.
"""

from __future__ import annotations

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.loader import run_op


def fused_layer(
    hidden: paddle.Tensor,
    residual: paddle.Tensor,
    *,
    qkv: paddle.Tensor,
    o: paddle.Tensor,
    gate_up: paddle.Tensor,
    down: paddle.Tensor,
    post_attention_norm: paddle.Tensor,
    next_norm: paddle.Tensor,
    cos_sin: paddle.Tensor,
    positions: paddle.Tensor,
    batch_id_per_token: paddle.Tensor,
    block_tables: paddle.Tensor,
    k_cache: paddle.Tensor,
    v_cache: paddle.Tensor,
    q_heads: int,
    kv_heads: int,
    eps: float,
    scale: float,
    qkv_bias: paddle.Tensor | None = None,
    q_norm: paddle.Tensor | None = None,
    k_norm: paddle.Tensor | None = None,
    o_bias: paddle.Tensor | None = None,
    gate_up_bias: paddle.Tensor | None = None,
    down_bias: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Attention and feed-forward of one block.

    Args:
        hidden: [T, H], the block's input after its norm.
        residual: [T, H], grows in place.
        qkv, o, gate_up, down: weights as ``pack_weight`` returned them; their biases are vectors or None.
        post_attention_norm: [H].
        next_norm: [H], the norm that the next block or the head begins with.
        q_norm, k_norm: [D] or None, norms of each query and key head.
        cos_sin, positions, batch_id_per_token, block_tables, k_cache, v_cache: as in ``rotary_kv_write``.
        scale: factor on the attention scores.
    Returns:
        [T, H], normed with ``next_norm``.
    Raises:
        RuntimeError, ValueError, OSError: a shape is wrong, or a row's position has no block.
    """
    for tensor, name in ((residual, "residual"), (k_cache, "k_cache"), (v_cache, "v_cache")):
        require_contiguous(tensor, name)
    return run_op(
        "fused_layer", hidden, residual, qkv, qkv_bias, q_norm, k_norm, o, o_bias, post_attention_norm, gate_up,
        gate_up_bias, down, down_bias, next_norm, cos_sin, positions, batch_id_per_token, block_tables, k_cache, v_cache,
        q_heads, kv_heads, eps, scale,
    )[0]  # fmt: skip
