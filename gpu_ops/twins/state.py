"""State twins, one slot at a time. `state` has the fields of `gpu_ops.slots.slot_fields` as attributes, and block_size."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_ops.slots import insert_columns
from gpu_ops.slots.slot_fields import FIELDS
from gpu_ops.step_result import SLOT_FIELDS, StopReason


def insert_requests(state: Any, ints: np.ndarray, floats: np.ndarray, tokens: np.ndarray) -> None:
    """Write new requests into their slots; columns as in `gpu_ops.slots.insert_columns`."""
    for row, values, text in zip(ints, floats, tokens):
        slot = row[insert_columns.SLOT]
        for entry in FIELDS:
            if entry.per_slot:
                getattr(state, entry.name)[slot] = entry.inserted
        for columns, source in ((insert_columns.INTS, row), (insert_columns.FLOATS, values)):
            for entry, start, size, shape in columns:
                getattr(state, entry.name)[slot] = source[start : start + size].reshape(shape)
        state.token_ids_all[slot, : state.prefill_lens[slot]] = text[: state.prefill_lens[slot]]


def _has_block(state: Any, slot: int, position: int) -> bool:
    index = position // state.block_size
    return index < state.block_tables.shape[1] and state.block_tables[slot, index] >= 0


def recover_block(state: Any) -> None:
    """Paused slots go on when the block of their next position is there."""
    for slot in np.flatnonzero(state.is_block_step).tolist():
        state.is_block_step[slot] = not _has_block(state, slot, int(state.seq_lens_decoder[slot]))


def apply_step(state: Any, scheduled: np.ndarray, cleared: np.ndarray, block_updates: np.ndarray) -> None:
    """Clear slots, enter blocks, recover, set the lengths of this step."""
    for slot in np.flatnonzero(cleared).tolist():
        state.block_tables[slot] = -1
        state.stop_flags[slot] = True
        state.is_block_step[slot] = False
        state.seq_lens_this_time[slot] = state.seq_lens_encoder[slot] = state.seq_lens_decoder[slot] = 0
    for slot, index, block in block_updates.tolist():
        state.block_tables[slot, index] = block
    recover_block(state)

    for slot in range(len(scheduled)):
        computed = int(state.seq_lens_decoder[slot])
        left = int(state.prompt_lens[slot] + state.step_idx[slot]) - computed
        now = 0
        if not state.stop_flags[slot] and not state.is_block_step[slot]:
            now = max(0, min(int(scheduled[slot]), left))
        if not all(_has_block(state, slot, position) for position in range(computed, computed + now)):
            state.is_block_step[slot] = True
            now = 0
        state.seq_lens_this_time[slot] = now
        state.seq_lens_encoder[slot] = min(max(int(state.prefill_lens[slot]) - computed, 0), now)


def pack_tokens(
    state: Any,
    ids_remove_padding: np.ndarray,
    positions: np.ndarray,
    batch_id_per_token: np.ndarray,
    cu_seqlens_q: np.ndarray,
    sample_rows: np.ndarray,
    sample_slots: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Lay out this step's tokens slot by slot and list the rows that sample."""
    if state.seq_lens_this_time.sum() > len(ids_remove_padding):
        raise ValueError(f"the step has {state.seq_lens_this_time.sum()} tokens for {len(ids_remove_padding)} rows")
    for array, padding in (
        (ids_remove_padding, 0), (positions, 0), (batch_id_per_token, -1), (sample_rows, -1), (sample_slots, -1),
    ):  # fmt: skip
        array[:] = padding
    row = sampling = 0
    for slot, now in enumerate(state.seq_lens_this_time.tolist()):
        computed = int(state.seq_lens_decoder[slot])
        cu_seqlens_q[slot] = row
        ids_remove_padding[row : row + now] = state.token_ids_all[slot, computed : computed + now]
        positions[row : row + now] = np.arange(computed, computed + now)
        batch_id_per_token[row : row + now] = slot
        row += now
        if now and computed + now == state.prompt_lens[slot] + state.step_idx[slot]:
            sample_rows[sampling], sample_slots[sampling] = row - 1, slot
            sampling += 1
    cu_seqlens_q[-1] = row
    counts[:] = row, sampling


def _find_stop(state: Any, slot: int, token: int) -> tuple[StopReason, int]:
    prompt, before = int(state.prompt_lens[slot]), int(state.step_idx[slot])
    generated = [*state.token_ids_all[slot, prompt : prompt + before].tolist(), int(token)]
    if len(generated) > state.min_dec_len[slot] and token >= 0:
        if token in state.eos_token_id[slot]:
            return StopReason.EOS, token
        if token in state.stop_token_ids[slot]:
            return StopReason.STOP_TOKEN, token
        for index, length in enumerate(state.stop_seqs_len[slot].tolist()):
            if length and generated[-length:] == state.stop_seqs[slot, index, :length].tolist():
                return StopReason.STOP_SEQUENCE, index
    full = prompt + len(generated) >= state.token_ids_all.shape[1]
    return (StopReason.LENGTH if full or len(generated) >= state.max_dec_len[slot] else StopReason.NONE), -1


def detect_stop(state: Any, tokens: np.ndarray, sample_slots: np.ndarray) -> None:
    """Decide for each token just sampled, before it enters the history, whether it ends its request."""
    state.stop_reason[:] = 0
    state.matched_stop[:] = -1
    for token, slot in zip(tokens, sample_slots):
        if slot >= 0:
            state.stop_reason[slot], state.matched_stop[slot] = _find_stop(state, slot, token)
            state.stop_flags[slot] |= state.stop_reason[slot] != 0


def update_inputs(state: Any, tokens: np.ndarray, sample_slots: np.ndarray) -> None:
    """Append the tokens, advance the lengths, pause slots without a next block."""
    state.num_sampled[:] = 0
    state.sampled_token_ids[:] = -1
    for token, slot in zip(tokens, sample_slots):
        if slot < 0:
            continue
        position = state.prompt_lens[slot] + state.step_idx[slot]
        if position < state.token_ids_all.shape[1]:
            state.token_ids_all[slot, position] = token
        state.step_idx[slot] += 1
        state.sampled_token_ids[slot] = token
        state.num_sampled[slot] = 1

    for slot in range(len(state.prompt_lens)):
        computed = state.seq_lens_this_time[slot] > 0
        state.seq_lens_decoder[slot] += state.seq_lens_this_time[slot]
        length = state.seq_lens_decoder[slot]
        if not state.stop_flags[slot] and not _has_block(state, slot, length):
            state.is_block_step[slot] = True
        if computed:
            runs = not state.stop_flags[slot] and not state.is_block_step[slot]
            state.seq_lens_this_time[slot] = runs and length == state.prompt_lens[slot] + state.step_idx[slot] - 1
            state.seq_lens_encoder[slot] = 0
    state.not_need_stop[0] = ((state.prompt_lens > 0) & ~state.stop_flags).any()


def pack_outputs(
    state: Any,
    landing: np.ndarray,
    sample_slots: np.ndarray | None = None,
    logprob_ids: np.ndarray | None = None,
    logprobs: np.ndarray | None = None,
    ranks: np.ndarray | None = None,
) -> None:
    """Pack the step's outcome as `gpu_ops.step_result` describes."""
    slots = len(state.num_sampled)
    end = 1 + slots * SLOT_FIELDS
    landing[0] = slots << 2 | (logprob_ids is not None) << 1 | bool(state.not_need_stop[0])
    token = np.where(state.num_sampled > 0, state.sampled_token_ids[:, 0], -1)
    columns = (token, state.num_sampled, state.stop_reason, state.matched_stop, state.seq_lens_decoder)
    landing[1:end] = np.stack(columns, axis=1).reshape(-1)
    if logprob_ids is None or sample_slots is None or logprobs is None or ranks is None:
        return

    block = landing[end:].reshape(slots, -1)
    room = (block.shape[1] - 2) // 2
    block[:, 0] = 0
    block[:, 1] = -1
    for row, slot in enumerate(sample_slots[: len(ranks)]):
        if slot < 0 or not state.num_sampled[slot] or state.num_logprobs[slot] < 0:
            continue
        kept = min(int(state.num_logprobs[slot]) + 1, logprob_ids.shape[1], room)
        block[slot, :2] = ranks[row], kept - 1
        block[slot, 2 : 2 + kept] = logprob_ids[row, :kept]
        block[slot, 2 + room : 2 + room + kept] = logprobs[row, :kept].astype(np.float64).view(np.int64)
