"""What the host reads of one step: the packed landing block and its layout (NumPy only; the ops write it).

Layout of ``landing``, int64, for B slots and K = KP + 1 columns of alternatives (chosen token first):

| part | size | content |
|---|---|---|
| header | 1 | bit 0: some slot still runs; bit 1: the logprobs part is valid; bits 2 and up: B |
| slots | B x 5 | token or -1, num_sampled, stop_reason, matched_stop, seq_lens_decoder |
| logprobs (optional) | B x (2 + 2K) | rank, count, K ids, K log-probabilities as float64 bit patterns |

``count`` is the number of alternatives besides the chosen token, -1 when the slot has no log-probabilities this step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

SLOT_FIELDS = 5


class StopReason(IntEnum):
    """Why a slot stopped in this step."""

    NONE = 0
    EOS = 1
    STOP_TOKEN = 2
    STOP_SEQUENCE = 3
    LENGTH = 4


@dataclass(frozen=True, slots=True)
class SlotLogprobs:
    """Log-probabilities of the tokens sampled in a step; rows of slots with counts -1 mean nothing.

    Attributes:
        ranks: int64 [B], 1 = the most likely token.
        counts: int64 [B], alternatives besides the chosen token, -1 for none asked or no token sampled.
        ids: int64 [B, K], chosen token, then the most likely ones; only counts + 1 columns are meant.
        logprobs: float64 [B, K], of `ids`.
    """

    ranks: np.ndarray
    counts: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One step's outcome for every slot, int64 [B] each; owns its memory, so the landing block may be reused.

    Attributes:
        not_need_stop: some slot still runs.
        tokens: sampled token, -1 where none was sampled.
        num_sampled: 0 or 1.
        stop_reason: a `StopReason`.
        matched_stop: token id or index of the stop sequence, -1 for none.
        seq_lens_decoder: tokens in the KV cache after the step.
        logprobs: None when no slot asked.
    """

    not_need_stop: bool
    tokens: np.ndarray
    num_sampled: np.ndarray
    stop_reason: np.ndarray
    matched_stop: np.ndarray
    seq_lens_decoder: np.ndarray
    logprobs: SlotLogprobs | None


def landing_size(max_num_seqs: int, max_logprobs: int | None) -> int:
    """int64 elements of a landing block; `max_logprobs` None leaves the logprobs part out."""
    logprob_fields = 0 if max_logprobs is None else 2 + 2 * (max_logprobs + 1)
    return 1 + max_num_seqs * (SLOT_FIELDS + logprob_fields)


def unpack_outputs(landing: np.ndarray) -> PackedStep:
    """Read a landing block that `pack_outputs` wrote."""
    header = int(landing[0])
    num_slots = header >> 2
    slots = landing[1 : 1 + num_slots * SLOT_FIELDS].reshape(num_slots, SLOT_FIELDS).T.copy()
    logprobs = None
    if header & 2:
        block = landing[1 + num_slots * SLOT_FIELDS :].reshape(num_slots, -1).copy()
        columns = (block.shape[1] - 2) // 2
        logprobs = SlotLogprobs(
            ranks=block[:, 0],
            counts=block[:, 1],
            ids=block[:, 2 : 2 + columns],
            logprobs=block[:, 2 + columns :].view(np.float64),
        )
    return PackedStep(bool(header & 1), slots[0], slots[1], slots[2], slots[3], slots[4], logprobs)
