"""State ops: each advances the slots of a `ShareInputs` in place, without a word from the host in between."""

from __future__ import annotations

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.loader import run_op
from gpu_ops.share_inputs import ShareInputs


def insert_requests(state: ShareInputs, ints: paddle.Tensor, floats: paddle.Tensor, tokens: paddle.Tensor) -> None:
    """Write n new requests into their slots, every field; blocks, lengths and flags start clean.

    Args:
        ints: int64 [n, 10 + E + ST + S + S*L + LB]: slot, prompt_len, prefill_len, step_idx, num_computed (becomes
            seq_lens_decoder: a prefix-cache hit), min_dec_len, max_dec_len, top_k, seed, num_logprobs, then EOS ids,
            stop ids, lengths of the stop sequences, the stop sequences, logit-bias ids; -1 pads ids.
        floats: float32 [n, 6 + LB]: temperature, top_p, min_p, penalty_score, presence_score, frequency_score, then
            logit-bias values.
        tokens: int64 [n, W]: prefill_len tokens a row, the rest is ignored.
    Raises:
        RuntimeError, ValueError, OSError: a shape or a value is out of range; the message names it. Nothing is written.
    """
    s = state
    run_op(
        "insert_requests", s.token_ids_all, s.prompt_lens, s.prefill_lens, s.step_idx, s.seq_lens_this_time,
        s.seq_lens_encoder, s.seq_lens_decoder, s.stop_flags, s.is_block_step, s.block_tables, s.sampled_token_ids,
        s.num_sampled, s.stop_reason, s.matched_stop, s.eos_token_id, s.stop_token_ids, s.stop_seqs, s.stop_seqs_len,
        s.min_dec_len, s.max_dec_len, s.temperature, s.top_p, s.min_p, s.penalty_score, s.presence_score,
        s.frequency_score, s.top_k, s.seeds, s.logit_bias_ids, s.logit_bias_values, s.num_logprobs,
        ints, floats, tokens,
    )  # fmt: skip


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
    s = state
    run_op(
        "apply_step", s.prompt_lens, s.prefill_lens, s.step_idx, s.seq_lens_this_time, s.seq_lens_encoder,
        s.seq_lens_decoder, s.stop_flags, s.is_block_step, s.block_tables, scheduled, cleared, block_updates,
        s.block_size,
    )  # fmt: skip


def recover_block(state: ShareInputs) -> None:
    """Resume paused slots whose block-table entry for the next position is there now (part of `apply_step`)."""
    run_op("recover_block", state.seq_lens_decoder, state.is_block_step, state.block_tables, state.block_size)


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
    s = state
    run_op(
        "pack_tokens", s.token_ids_all, s.prompt_lens, s.step_idx, s.seq_lens_this_time, s.seq_lens_decoder,
        ids_remove_padding, positions, batch_id_per_token, cu_seqlens_q, sample_rows, sample_slots, counts,
    )  # fmt: skip


def detect_stop(state: ShareInputs, tokens: paddle.Tensor, sample_slots: paddle.Tensor) -> None:
    """Decide for each sampled token whether it ends its request, before it enters the history.

    Args:
        tokens: int64 [R], just sampled.
        sample_slots: int32 [R or more], their slots; -1 is skipped.
    """
    s = state
    run_op(
        "detect_stop", s.token_ids_all, s.prompt_lens, s.step_idx, s.stop_flags, s.stop_reason, s.matched_stop,
        s.eos_token_id, s.stop_token_ids, s.stop_seqs, s.stop_seqs_len, s.min_dec_len, s.max_dec_len,
        tokens, sample_slots,
    )  # fmt: skip


def update_inputs(state: ShareInputs, tokens: paddle.Tensor, sample_slots: paddle.Tensor) -> None:
    """End a step: append the sampled tokens, advance the lengths, pause slots without a next block.

    Runs after `detect_stop`, with the same arguments. The token is recorded as it was sampled, stop or not.
    """
    s = state
    run_op(
        "update_inputs", s.token_ids_all, s.prompt_lens, s.step_idx, s.seq_lens_this_time, s.seq_lens_encoder,
        s.seq_lens_decoder, s.stop_flags, s.is_block_step, s.block_tables, s.sampled_token_ids, s.num_sampled,
        s.not_need_stop, tokens, sample_slots, s.block_size,
    )  # fmt: skip


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
    s = state
    run_op(
        "pack_outputs", s.seq_lens_decoder, s.sampled_token_ids, s.num_sampled, s.stop_reason, s.matched_stop,
        s.not_need_stop, landing,
    )  # fmt: skip
    if logprob_ids is not None:
        run_op("pack_logprobs", s.num_sampled, s.num_logprobs, landing, sample_slots, logprob_ids, logprobs, ranks)
