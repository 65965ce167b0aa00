"""Sampling ops: from logits to tokens; a row's result depends on that row, its slot and nothing else.

A step in which no row samples is ordinary, and Paddle 2.6 refuses ops with empty outputs: the wrappers return early.
"""

from __future__ import annotations

import paddle

from gpu_ops.in_place import require_contiguous
from gpu_ops.loader import run_op
from gpu_ops.slots.share_inputs import ShareInputs
from gpu_ops.slots.state_op import run_state_op


def gather_last_tokens(hidden: paddle.Tensor, sample_rows: paddle.Tensor, out: paddle.Tensor) -> None:
    """Write the rows of `hidden` [T, H] named by `sample_rows` int32 [R] into the first R of `out` [R or more, H] of the same
    type; -1 gives zeros.

    Raises:
        ValueError: `out` is not contiguous.
    """
    require_contiguous(out, "out")
    if sample_rows.shape[0]:
        run_op("gather_last_tokens", hidden, sample_rows, out)


def apply_penalties(logits: paddle.Tensor, state: ShareInputs, sample_slots: paddle.Tensor) -> None:
    """Change `logits` float32 [R, V] in place: bias, minimum length, allowed tokens, bad sequences, repetition, then frequency
    and presence.

    Args:
        sample_slots: int32 [R or more], slot of each row; rows with slot -1 stay as they are.
    Raises:
        ValueError: `logits` is not contiguous.
    """
    require_contiguous(logits, "logits")
    if not logits.shape[0]:
        return
    run_state_op("apply_penalties", state, logits, sample_slots)


def mask_words(vocab_size: int) -> int:
    """int32 words of a slot's mask: one that says whether there is one, then a bit for each token."""
    return 1 + (vocab_size + 31) // 32


def apply_token_masks(logits: paddle.Tensor, masks: paddle.Tensor, sample_slots: paddle.Tensor) -> None:
    """Change `logits` float32 [R, V] in place: tokens that the mask of a row's slot does not allow get -inf. Where nothing that
    it allows is left (-inf or NaN, because something else forbids it), what it allows gets 0.

    Args:
        masks: int32 [slots, mask_words(V)]; a first word of 0 leaves the slot's row as it is, then bit i % 32 of word 1 + i / 32
            allows token i.
        sample_slots: int32 [R or more], slot of each row; rows with slot -1 stay as they are.
    Raises:
        ValueError: `logits` is not contiguous.
    """
    require_contiguous(logits, "logits")
    if not logits.shape[0]:
        return
    run_op("apply_token_masks", logits, masks, sample_slots)


def apply_temperature(logits: paddle.Tensor, state: ShareInputs, sample_slots: paddle.Tensor) -> None:
    """Divide `logits` float32 [R, V] in place by the temperatures of their slots; rows that take the largest value, and those
    with slot -1, stay as they are.

    Raises:
        ValueError: `logits` is not contiguous.
    """
    require_contiguous(logits, "logits")
    if not logits.shape[0]:
        return
    run_state_op("apply_temperature", state, logits, sample_slots)


def sample(
    logits: paddle.Tensor, state: ShareInputs, sample_slots: paddle.Tensor, masks: paddle.Tensor | None = None
) -> paddle.Tensor:
    """One token for each row of `logits` float32 [R, V], int64 [R].

    Temperature at most 1e-5, and rows with NaN or without a finite maximum, take the lowest index of the largest value
    that is not NaN (0 if all are). Otherwise: temperature, min_p, top_k, softmax, top_p, and the inverse of the
    cumulative distribution in index order at a Philox number of (seed, absolute position).

    Args:
        sample_slots: int32 [R or more], slot of each row; rows with slot -1 take the largest value.
        masks: to apply first, as `apply_token_masks` would; on the CPU without a pass of its own. The logits of masked rows may
            have changed afterwards, or not.
    Raises:
        ValueError: `logits` is not contiguous, and there are masks.
    """
    if masks is not None:
        require_contiguous(logits, "logits")
    if not logits.shape[0]:
        return paddle.empty([0], "int64")
    return run_state_op("sample", state, logits, sample_slots, masks)[0]


def token_logprobs(
    logits: paddle.Tensor, tokens: paddle.Tensor, num: int
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Log-softmax of raw logits at the chosen and at the most likely tokens.

    NaN counts as -inf; a row of nothing else is uniform.

    Args:
        logits: float32 [R, V], before penalties and temperature.
        tokens: int64 [R], chosen; a row whose token is outside [0, V) gets log-probability -inf and rank 0.
        num: alternatives besides the chosen token, at least 0.
    Returns:
        ids int64 [R, num + 1] (chosen token, then the most likely, lower index first among equals, -1 beyond V),
        log-probabilities float32 [R, num + 1], ranks int64 [R] (1 + number of tokens strictly more likely).
    """
    if not logits.shape[0]:
        return paddle.empty([0, num + 1], "int64"), paddle.empty([0, num + 1], "float32"), paddle.empty([0], "int64")
    ids, logprobs, ranks = run_op("token_logprobs", logits, tokens, num)
    return ids, logprobs, ranks
