"""State ops: each advances the slots of a `ShareInputs` in place, without a word from the host in between."""

from __future__ import annotations

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.slots.share_inputs import ShareInputs
from gpu_ops.slots.state_op import run_state_op


def insert_requests(state: ShareInputs, ints: paddle.Tensor, floats: paddle.Tensor, tokens: paddle.Tensor) -> None:
    """Write n new requests into their slots, every field; blocks, lengths and flags start clean.

    Args:
        ints: int64 [n, NUM_INTS] and floats: float32 [n, NUM_FLOATS], columns as in ``gpu_ops.slots.insert_columns``: first the
            slot, then what the fields declare, among it num_computed (becomes seq_lens_decoder: a prefix-cache hit); -1 pads ids.
        tokens: int64 [n, W]: prefill_len tokens a row, the rest is ignored.
    Raises:
        RuntimeError, ValueError, OSError: a shape or a value is out of range; the message names it. Nothing is written.
    """
    run_state_op("insert_requests", state, ints, floats, tokens)


def apply_step(
    state: ShareInputs, scheduled: paddle.Tensor, cleared: paddle.Tensor, block_updates: paddle.Tensor
) -> None:
    """Begin a step: clear slots, enter new blocks, resume paused slots that got their block, set the lengths.

    A slot whose blocks do not cover all positions it would compute pauses instead. New requests are inserted before,
    so no slot may be both inserted and cleared in one step.

    Args:
        scheduled: int32 [B], tokens to compute; may exceed what a slot has left, never what it needs.
        cleared: int32 [B], non-zero for slots that were preempted or aborted.
        block_updates: int32 [n, 3] of (slot, index in the block table, block).
    """
    run_state_op("apply_step", state, scheduled, cleared, block_updates, state.block_size)


def recover_block(state: ShareInputs) -> None:
    """Resume paused slots whose block-table entry for the next position is there now (part of `apply_step`)."""
    run_state_op("recover_block", state, state.block_size)


def pack_tokens(
    state: ShareInputs,
    ids_remove_padding: paddle.Tensor,
    positions: paddle.Tensor,
    batch_id_per_token: paddle.Tensor,
    cu_seqlens_q: paddle.Tensor,
    sample_rows: paddle.Tensor,
    sample_slots: paddle.Tensor,
    counts: paddle.Tensor,
) -> None:
    """Lay this step's tokens out row by row, slot 0 first, and find the rows that sample.

    Args:
        ids_remove_padding, positions, batch_id_per_token: int64, int32, int32 [TC]: token id, absolute position and
            slot of a row; padding rows are 0, 0, -1.
        cu_seqlens_q: int32 [B + 1], first row of each slot, then the number of rows.
        sample_rows, sample_slots: int32 [B], last row and slot of each slot that reaches the end of its tokens; -1 pads.
        counts: int32 [2], rows with tokens, rows that sample.
    Raises:
        RuntimeError, OSError: the step has more tokens than TC rows.
    """
    for tensor, name in (
        (ids_remove_padding, "ids_remove_padding"), (positions, "positions"),
        (batch_id_per_token, "batch_id_per_token"), (cu_seqlens_q, "cu_seqlens_q"), (sample_rows, "sample_rows"),
        (sample_slots, "sample_slots"), (counts, "counts"),
    ):  # fmt: skip
        require_contiguous(tensor, name)
    run_state_op(
        "pack_tokens", state, ids_remove_padding, positions, batch_id_per_token, cu_seqlens_q, sample_rows, sample_slots,
        counts,
    )  # fmt: skip


def detect_stop(state: ShareInputs, tokens: paddle.Tensor, sample_slots: paddle.Tensor) -> None:
    """Decide for each sampled token whether it ends its request, before it enters the history.

    Args:
        tokens: int64 [R], just sampled.
        sample_slots: int32 [R or more], their slots; -1 is skipped.
    """
    run_state_op("detect_stop", state, tokens, sample_slots)


def update_inputs(state: ShareInputs, tokens: paddle.Tensor, sample_slots: paddle.Tensor) -> None:
    """End a step: append the sampled tokens, advance the lengths, pause slots without a next block.

    Runs after `detect_stop`, with the same arguments. The token is recorded as it was sampled, stop or not.
    """
    run_state_op("update_inputs", state, tokens, sample_slots, state.block_size)


def pack_outputs(
    state: ShareInputs,
    landing: paddle.Tensor,
    sample_slots: paddle.Tensor | None = None,
    logprob_ids: paddle.Tensor | None = None,
    logprobs: paddle.Tensor | None = None,
    ranks: paddle.Tensor | None = None,
) -> None:
    """Pack what the host needs of this step into one block; `gpu_ops.step_result` has the layout and reads it.

    Args:
        landing: int64 [landing_size(B, None)], or [landing_size(B, KP)] to hold log-probabilities.
        sample_slots: int32 [R or more], with the three results of `token_logprobs` for R rows; leave all four out when
            no slot asked for log-probabilities.
    """
    require_contiguous(landing, "landing")
    run_state_op("pack_outputs", state, landing)
    if logprob_ids is not None:
        run_state_op("pack_logprobs", state, landing, sample_slots, logprob_ids, logprobs, ranks)
