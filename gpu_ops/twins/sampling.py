"""Sampling twins. `state` has the fields of `gpu_ops.slots.slot_fields` as attributes; `sample_slots` names the slot of a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_ops.twins.philox import uniform

GREEDY_TEMPERATURE = 1e-5


def gather_last_tokens(hidden: np.ndarray, sample_rows: np.ndarray) -> np.ndarray:
    """Rows of `hidden` [T, H] by index; -1 gives zeros."""
    inside = (sample_rows >= 0) & (sample_rows < len(hidden))
    rows = np.zeros((len(sample_rows), hidden.shape[1]), hidden.dtype)
    rows[inside] = hidden[sample_rows[inside]]
    return rows


def apply_penalties(logits: np.ndarray, state: Any, sample_slots: np.ndarray) -> None:
    """Bias, minimum length, allowed tokens, bad sequences, repetition, then frequency and presence; in place, float32, in this
    order."""
    vocab = logits.shape[1]

    def known(ids: np.ndarray) -> np.ndarray:
        return ids[(ids >= 0) & (ids < vocab)]

    for row, slot in zip(logits, sample_slots):
        if slot < 0:
            continue
        for token, bias in zip(state.logit_bias_ids[slot], state.logit_bias_values[slot]):
            if 0 <= token < vocab:
                row[token] += bias
        if state.step_idx[slot] < state.min_dec_len[slot]:
            row[known(state.eos_token_id[slot])] = -np.inf
            row[known(state.stop_token_ids[slot])] = -np.inf
        prompt, total = state.prompt_lens[slot], state.prompt_lens[slot] + state.step_idx[slot]
        if state.allowed_token_ids[slot, 0] >= 0:
            forbidden = np.ones(vocab, bool)
            forbidden[known(state.allowed_token_ids[slot])] = False
            row[forbidden] = -np.inf
        generated = state.token_ids_all[slot, prompt:total]
        for length, sequence in zip(state.bad_seqs_len[slot], state.bad_seqs[slot]):
            before = length - 1
            if 0 <= before <= len(generated) and (generated[len(generated) - before :] == sequence[:before]).all():
                row[known(sequence[before:length])] = -np.inf

        seen = np.unique(known(state.token_ids_all[slot, :total]))
        penalty = state.penalty_score[slot]
        row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        tokens, counts = np.unique(known(state.token_ids_all[slot, prompt:total]), return_counts=True)
        row[tokens] = row[tokens] - state.frequency_score[slot] * counts.astype(np.float32)
        row[tokens] = row[tokens] - state.presence_score[slot]


def apply_token_masks(logits: np.ndarray, masks: np.ndarray, sample_slots: np.ndarray) -> None:
    """Keep what the masks int32 [slots, 1 + words] of the rows' slots allow; in place, float32."""
    for row, slot in zip(logits, sample_slots):
        if slot < 0 or not masks[slot, 0]:
            continue
        allowed = np.unpackbits(masks[slot, 1:].view(np.uint8), bitorder="little")[: len(row)].astype(bool)
        row[~allowed] = -np.inf
        if not (row > -np.inf).any():
            row[allowed] = 0


def apply_temperature(logits: np.ndarray, state: Any, sample_slots: np.ndarray) -> None:
    """Divide the rows of slots that sample; in place, float32."""
    for row, slot in zip(logits, sample_slots):
        if slot >= 0 and state.temperature[slot] > GREEDY_TEMPERATURE:
            row /= state.temperature[slot]


def argmax(row: np.ndarray) -> int:
    """Lowest index of the largest value that is not NaN; 0 if all are."""
    # numpy's own takes NaN for -inf: of nothing else the first would be one.
    numbers = np.flatnonzero(~np.isnan(row))
    return int(numbers[np.argmax(row[numbers])]) if len(numbers) else 0


def kept_probabilities(
    row: np.ndarray, temperature: np.float32, min_p: float, top_k: int, top_p: float
) -> np.ndarray | None:
    """The distribution that `sample` draws from, float64 [V] with zeros for what was dropped; None: it takes the argmax."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = row / np.float32(temperature)
        best = np.nanmax(scaled) if not np.isnan(scaled).all() else np.nan
        distance = best - scaled
    if not np.isfinite(best) or np.isnan(row).any():
        return None
    weight = np.exp(-distance.astype(np.float64))
    kept = weight >= min_p
    if 0 < top_k < kept.sum():
        kept &= distance <= np.sort(distance[kept])[top_k - 1]
    if top_p < 1:
        order = np.flatnonzero(kept)[np.argsort(distance[kept], kind="stable")]
        sums = np.cumsum(weight[order])
        kept[order[1 + np.searchsorted(sums, top_p * sums[-1]) :]] = False
    weight[~kept] = 0
    return weight / weight.sum()


def sample(logits: np.ndarray, state: Any, sample_slots: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """One token for each row, int64 [R], of what the masks leave."""
    if masks is not None:
        logits = logits.copy()
        apply_token_masks(logits, masks, sample_slots)
    tokens = np.zeros(len(logits), np.int64)
    for r, (row, slot) in enumerate(zip(logits, sample_slots)):
        probabilities = None
        if slot >= 0 and state.temperature[slot] > GREEDY_TEMPERATURE:
            probabilities = kept_probabilities(
                row, state.temperature[slot], state.min_p[slot], state.top_k[slot], state.top_p[slot]
            )
        if probabilities is None:
            tokens[r] = argmax(row)
        else:
            position = int(state.prompt_lens[slot] + state.step_idx[slot])
            tokens[r] = draw(probabilities, uniform(int(state.seeds[slot]), position))
    return tokens


def draw(probabilities: np.ndarray, u: float) -> int:
    """The first token, in index order, at which the cumulative probability exceeds u."""
    token = int(np.searchsorted(np.cumsum(probabilities), u, side="right"))
    return min(token, int(np.flatnonzero(probabilities)[-1]))


def token_logprobs(logits: np.ndarray, tokens: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-softmax of raw logits: (ids [R, num + 1], log-probabilities [R, num + 1], ranks [R])."""
    count, vocab = logits.shape
    ids = np.full((count, num + 1), -1, np.int64)
    logprobs = np.full((count, num + 1), -np.inf, np.float32)
    ranks = np.zeros(count, np.int64)
    for r in range(count):
        row = np.where(np.isnan(logits[r]), -np.inf, logits[r]).astype(np.float64)
        with np.errstate(invalid="ignore"):
            largest = np.max(row)
            below = np.where(row == largest, 0.0, row - largest)
        all_logprobs = below - np.log(np.exp(below).sum())
        best = np.argsort(-row, kind="stable")[:num]
        ids[r, 0] = tokens[r]
        ids[r, 1 : 1 + len(best)] = best
        logprobs[r, 1 : 1 + len(best)] = all_logprobs[best]
        if 0 <= tokens[r] < vocab:
            logprobs[r, 0] = all_logprobs[tokens[r]]
            ranks[r] = 1 + (row > row[tokens[r]]).sum()
    return ids, logprobs, ranks
