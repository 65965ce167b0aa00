"""Ops of a step in which every sequence computes one token, on the GPU: matmuls of few rows that take their neighbouring
layers along, and attention that takes the rotary embedding and the cache write along. Twins: ``gpu_ops.twins.decode_ops``.

A model's step is bound by reading weights and cache once; what else runs between two matmuls costs launches and a round
through memory. The kernels of these ops also start while their predecessor still runs (programmatic dependent launch).
A row's matmuls depend on that row alone; so does its attention with ``batch_invariant``, else the contexts of all rows decide how
each is split. Bits are not those of ``gpu_ops.forward``, but for attention with ``batch_invariant``.
"""

from __future__ import annotations

import paddle

from gpu_ops.kernel_limits import MAX_SMALL_LINEAR_FEATURES
from gpu_ops.loader import run_op

_FIRST_CHAINING_CAPABILITY = 9


def has_small_linear(in_features: int) -> bool:
    """Whether ``small_batch_linear`` of so many inputs is computed with all weights on chip before x is there, which is what pays
    for more than a few rows: from compute capability 9.0 on."""
    capability = paddle.device.cuda.get_device_capability()[0]
    return in_features <= MAX_SMALL_LINEAR_FEATURES and capability >= _FIRST_CHAINING_CAPABILITY


def small_batch_linear(
    x: paddle.Tensor,
    weight: paddle.Tensor,
    bias: paddle.Tensor | None = None,
    norm_weight: paddle.Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    float32_output: bool = False,
) -> paddle.Tensor:
    """norm(x) W^T + bias, and ``swiglu`` of that.

    Args:
        x: float16 or bfloat16 [T, in_features], at most ``kernel_limits.MAX_SMALL_BATCH_ROWS`` rows.
        weight: [out_features, in_features], in_features a multiple of 8; with ``swiglu`` the gate's rows come first.
        bias: [out_features].
        norm_weight: [in_features]; given, x is RMS-normed first. x * norm_weight has to fit the type, so it is not meant
            for float16.
        swiglu: return silu(gate) * up, [T, out_features / 2].
        float32_output: for logits.
    Returns:
        [T, out_features].
    Raises:
        RuntimeError, ValueError, OSError: a shape is wrong, or there are too many rows.
    """
    return run_op(
        "small_batch_linear", x, weight, bias, norm_weight, weight.shape[0], eps, swiglu, float32_output
    )[0]  # fmt: skip


def add_small_batch_linear(
    x: paddle.Tensor, weight: paddle.Tensor, residual: paddle.Tensor, bias: paddle.Tensor | None = None
) -> None:
    """residual [T, out_features] += x W^T + bias, in place; the sum's parts are rounded as ``linear`` and a sum would be."""
    run_op("add_small_batch_linear", x, weight, residual, bias, weight.shape[0])


def decode_attention(
    qkv: paddle.Tensor,
    cos_sin: paddle.Tensor,
    positions: paddle.Tensor,
    batch_id_per_token: paddle.Tensor,
    block_tables: paddle.Tensor,
    k_cache: paddle.Tensor,
    v_cache: paddle.Tensor,
    q_heads: int,
    kv_heads: int,
    scale: float,
    batch_invariant: bool = False,
) -> paddle.Tensor:
    """``rotary_kv_write`` and ``paged_attention`` of rows that are alone in their slot; qkv stays as it is.

    Arguments are theirs. Older positions of a slot may be read before the kernel ahead of this one has ended, so nothing but
    this op may write them in the same step.

    Returns:
        [T, q_heads * D]; zeros where the slot is -1. With ``batch_invariant`` the bits of the two ops.
    """
    return run_op(
        "decode_attention", qkv, cos_sin, positions, batch_id_per_token, block_tables, k_cache, v_cache,
        q_heads, kv_heads, scale, batch_invariant,
    )[0]  # fmt: skip
