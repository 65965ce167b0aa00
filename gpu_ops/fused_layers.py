"""The first norm and all decoder blocks as a single op. It calls the kernels of ``gpu_ops.forward`` in turn and gives the same
bits, on the CPU and on the GPU.

Where Paddle calls it, a custom op costs 30 to 60 us, as Paddle copies the table of all of them: with an op a block that was a
fifth of a CPU's decode step of a small model, and helpers of the thread pool fell asleep between two blocks. On a GPU ten ops a
block took the host longer than the device needs for the prompt of a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.loader import run_op


class FusedLayer(NamedTuple):
    """What a block computes with.

    Attributes:
        qkv, o, gate_up, down: weights as ``pack_weight`` or ``pack_rows`` returned them; their biases are vectors or None.
        post_attention_norm: [H].
        next_norm: [H], the norm that the next block or the head begins with.
        q_norm, k_norm: [D] or None, norms of each query and key head.
    """

    qkv: paddle.Tensor
    o: paddle.Tensor
    gate_up: paddle.Tensor
    down: paddle.Tensor
    post_attention_norm: paddle.Tensor
    next_norm: paddle.Tensor
    qkv_bias: paddle.Tensor | None = None
    q_norm: paddle.Tensor | None = None
    k_norm: paddle.Tensor | None = None
    o_bias: paddle.Tensor | None = None
    gate_up_bias: paddle.Tensor | None = None
    down_bias: paddle.Tensor | None = None


def fused_layers(
    residual: paddle.Tensor,
    input_norm: paddle.Tensor,
    layers: Sequence[FusedLayer],
    caches: Sequence[tuple[paddle.Tensor, paddle.Tensor]],
    *,
    cos_sin: paddle.Tensor,
    positions: paddle.Tensor,
    batch_id_per_token: paddle.Tensor,
    block_tables: paddle.Tensor,
    q_heads: int,
    kv_heads: int,
    eps: float,
    scale: float,
    cu_seqlens_q: paddle.Tensor | None = None,
    max_rows_per_slot: int = 1,
    batch_invariant: bool = False,
    layers_done: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Attention and feed-forward of blocks, one after the other.

    Args:
        residual: [T, H], the first block's input; grows in place.
        input_norm: [H], the norm that the first block begins with.
        layers: one or more; what is None in one of them is None in all.
        caches: keys and values of each, as in ``rotary_kv_write``, written in place; so the next four.
        scale: factor on the attention scores.
        cu_seqlens_q, max_rows_per_slot, batch_invariant: as in ``paged_attention`` and ``linear``; the CPU ignores them. On a
            GPU no more than one row a slot means that all decode, as in ``decode_ops.decode_attention``.
        layers_done: int64 [1] on the host; grows by one with each layer that the CPU has computed. A GPU leaves it alone.
    Returns:
        [T, H], normed with the last ``next_norm``.
    Raises:
        RuntimeError, ValueError, OSError: a shape is wrong, or a row's position has no block.
    """
    require_contiguous(residual, "residual")
    for cache in caches:
        require_contiguous(cache[0], "k_cache")
        require_contiguous(cache[1], "v_cache")
    columns = {
        name: _of_all(name, column)
        for name, column in zip(FusedLayer.__annotations__, zip(*layers, strict=True), strict=True)
    }
    k_caches, v_caches = zip(*caches, strict=True)
    return run_op(
        "fused_layers", residual, input_norm, cos_sin, positions, batch_id_per_token, block_tables, cu_seqlens_q,
        layers_done, *columns.values(), k_caches, v_caches, q_heads, kv_heads, eps, scale, max_rows_per_slot, batch_invariant,
    )[0]  # fmt: skip


def _of_all(name: str, column: tuple[paddle.Tensor | None, ...]) -> tuple[paddle.Tensor | None, ...] | None:
    has_it = {tensor is not None for tensor in column}
    if len(has_it) > 1:
        raise ValueError(f"{name}: either all layers have one or none has")
    return column if has_it.pop() else None
