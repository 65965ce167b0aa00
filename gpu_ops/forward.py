"""Forward ops: everything between token ids and logits. Twins in NumPy: ``gpu_ops.twins.forward``.

On the CPU floats are float32, but for what a KV cache of another type stores (``gpu_ops.kv_cache``), and a row's result
depends on that row's inputs alone: not on the other rows, how many there are, the number of threads or the instruction set.
On the GPU activations, weights and caches are float16 or bfloat16
(sums, rotary table and logits float32), rows are multiples of 8 elements, and ``linear`` and ``paged_attention`` keep that
promise where ``batch_invariant`` asks for it. Shapes are checked natively; an error names the argument.
"""

from __future__ import annotations

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.loader import run_op

DEFAULT_SPIN_MICROSECONDS = 50

_num_threads = 1
# Of a packed weight.
_PANEL_COLUMNS = 32


def set_num_threads(threads: int, spin_microseconds: int = DEFAULT_SPIN_MICROSECONDS) -> None:
    """Set how many threads of this process compute, the calling one included.

    Args:
        threads: 1 to 1024.
        spin_microseconds: how long an idle helper spins for its next work before it sleeps, 0 to 1000000. Spinning
            bridges the gap between two ops of a step; sleeping keeps an idle engine off the processor.
    Raises:
        RuntimeError, OSError: a value is out of range.
    """
    global _num_threads
    run_op("set_num_threads", paddle.to_tensor([threads, spin_microseconds], dtype="int64", place=paddle.CPUPlace()))
    _num_threads = threads


def get_num_threads() -> int:
    """How many threads compute."""
    return _num_threads


def pack_weight(weight: paddle.Tensor) -> paddle.Tensor:
    """Bring a weight [out_features, in_features] into the layout of ``linear``.

    Returns:
        [ceil(out_features / 32), in_features, 32]: panels of 32 output columns, zeros beyond out_features. On the GPU
        the weight itself.
    """
    if weight.place.is_gpu_place():
        return weight
    return run_op("pack_weight", weight)[0]


def packed_shape(out_features: int, in_features: int, on_gpu: bool) -> tuple[int, ...]:
    """Shape of what ``pack_weight`` returns."""
    if on_gpu:
        return out_features, in_features
    return -(-out_features // _PANEL_COLUMNS), in_features, _PANEL_COLUMNS


def linear(
    x: paddle.Tensor,
    packed: paddle.Tensor,
    out_features: int,
    bias: paddle.Tensor | None = None,
    float32_output: bool = False,
    batch_invariant: bool = False,
) -> paddle.Tensor:
    """x W^T + bias.

    Args:
        x: [T, in_features].
        packed: W as ``pack_weight`` returned it.
        out_features: rows of W.
        bias: [out_features] or None.
        float32_output: on the GPU, give float32 (logits) instead of the type of x; then there is no bias.
        batch_invariant: on the GPU, one pinned algorithm a weight shape without a split over in_features, so that a
            row's bits do not depend on how many rows there are. On the CPU that always holds.
    Returns:
        [T, out_features].
    """
    return run_op("linear", x, packed, bias, out_features, float32_output, batch_invariant)[0]


def embedding(weight: paddle.Tensor, ids: paddle.Tensor, vocab_size: int) -> paddle.Tensor:
    """Rows of an embedding table.

    Args:
        weight: the table as ``pack_weight`` returned it (one copy serves a tied head too), or plain [vocab_size, H].
        ids: int64 [T].
        vocab_size: rows of the table.
    Returns:
        [T, H]; zeros for an id outside [0, vocab_size).
    """
    return run_op("embedding", weight, ids, vocab_size)[0]


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x [T, H], weight [H] -> [T, H]."""
    return run_op("rms_norm", x, weight, eps)[0]


def add_rms_norm(x: paddle.Tensor, residual: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """Add x [T, H] to residual [T, H] in place; return the norm of the sum, [T, H]."""
    require_contiguous(residual, "residual")
    return run_op("add_rms_norm", x, residual, weight, eps)[0]


def rms_norm_add(x: paddle.Tensor, residual: paddle.Tensor, weight: paddle.Tensor, eps: float) -> None:
    """Add the norm of x [T, H] to residual [T, H] in place."""
    require_contiguous(residual, "residual")
    run_op("rms_norm_add", x, residual, weight, eps)


def qk_norm(
    qkv: paddle.Tensor, q_weight: paddle.Tensor, k_weight: paddle.Tensor, q_heads: int, kv_heads: int, eps: float
) -> None:
    """Norm each query and key head of qkv in place, as Qwen3 does; value heads stay.

    Args:
        qkv: [T, (q_heads + 2 * kv_heads) * D]: query heads, then key heads, then value heads.
        q_weight, k_weight: [D].
    """
    require_contiguous(qkv, "qkv")
    run_op("qk_norm", qkv, q_weight, k_weight, q_heads, kv_heads, eps)


def projection_norm(qkv: paddle.Tensor, q_weight: paddle.Tensor, k_weight: paddle.Tensor, eps: float) -> None:
    """Norm all queries of a row of qkv together and all its keys together, in place, as OLMo 2 does; values stay.

    Args:
        qkv: [T, Hq D + 2 Hkv D]: queries, then keys, then values.
        q_weight: [Hq D].
        k_weight: [Hkv D].
    """
    require_contiguous(qkv, "qkv")
    run_op("projection_norm", qkv, q_weight, k_weight, eps)


def swiglu(gate_up: paddle.Tensor) -> paddle.Tensor:
    """silu(gate) * up; gate_up [T, 2I] holds the gate in its first half -> [T, I]."""
    return run_op("swiglu", gate_up)[0]


def rotary_kv_write(
    qkv: paddle.Tensor,
    cos_sin: paddle.Tensor,
    positions: paddle.Tensor,
    batch_id_per_token: paddle.Tensor,
    block_tables: paddle.Tensor,
    k_cache: paddle.Tensor,
    v_cache: paddle.Tensor,
    q_heads: int,
    kv_heads: int,
) -> None:
    """Rotate the queries of qkv in place and write rotated keys and values into the cache.

    Args:
        qkv: [T, (q_heads + 2 * kv_heads) * D].
        cos_sin: [M, D], by position: cosines in the first half of the row, sines in the second. Element i turns with
            element i + D / 2.
        positions: int32 [T].
        batch_id_per_token: int32 [T], the row's slot; -1 skips the row.
        block_tables: int32 [B, NB].
        k_cache, v_cache: as ``kv_cache.kv_cache_shape`` says; their type is what is stored.
    Raises:
        RuntimeError, ValueError, OSError: a shape is wrong, or a row's position has no block. Nothing was written then.
    """
    require_contiguous(qkv, "qkv")
    require_contiguous(k_cache, "k_cache")
    require_contiguous(v_cache, "v_cache")
    run_op(
        "rotary_kv_write",
        qkv,
        cos_sin,
        positions,
        batch_id_per_token,
        block_tables,
        k_cache,
        v_cache,
        q_heads,
        kv_heads,
    )


def paged_attention(
    qkv: paddle.Tensor,
    k_cache: paddle.Tensor,
    v_cache: paddle.Tensor,
    block_tables: paddle.Tensor,
    positions: paddle.Tensor,
    batch_id_per_token: paddle.Tensor,
    q_heads: int,
    kv_heads: int,
    scale: float,
    cu_seqlens_q: paddle.Tensor | None = None,
    max_rows_per_slot: int = 1,
    batch_invariant: bool = False,
) -> paddle.Tensor:
    """Causal attention of rotated queries over the cache, for prefill chunks and decode alike.

    Args:
        qkv: [T, (q_heads + 2 * kv_heads) * D]; only the query heads are read. Query head h attends with key head
            h // (q_heads / kv_heads).
        block_tables, positions, batch_id_per_token, k_cache, v_cache: as in ``rotary_kv_write``.
        scale: factor on the scores.
        cu_seqlens_q: int32 [B + 1] as ``pack_tokens`` writes it. The GPU computes rows of one slot together where it is
            given; left out, every row is computed on its own, which is right but slow for prompts. The CPU ignores it.
        max_rows_per_slot: with ``cu_seqlens_q``, a bound on the rows of any slot, known to the host; 1 = all decode.
        batch_invariant: on the GPU, a row of a chunk has the same bits as the same row decoded alone.
    Returns:
        [T, q_heads * D]; zeros where the slot is -1.
    Raises:
        RuntimeError, ValueError, OSError: a shape is wrong, or a position has no block.
    """
    return run_op(
        "paged_attention", qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, cu_seqlens_q,
        q_heads, kv_heads, scale, max_rows_per_slot, batch_invariant,
    )[0]  # fmt: skip
