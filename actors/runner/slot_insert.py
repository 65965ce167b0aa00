"""The packed form in which a request enters its slot; columns as ``gpu_ops.state.insert_requests`` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.scheduling.step_plan import SlotInsert
from cluster.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_SEQ_LEN, MAX_STOP_SEQS, MAX_STOP_TOKEN_IDS
from gpu_ops.share_inputs import MAX_EOS_TOKEN_IDS

_INT_SCALARS = 10
_FLOAT_SCALARS = 6
_EOS = _INT_SCALARS
_STOP_IDS = _EOS + MAX_EOS_TOKEN_IDS
_SEQ_LENS = _STOP_IDS + MAX_STOP_TOKEN_IDS
_SEQS = _SEQ_LENS + MAX_STOP_SEQS
_BIAS = _SEQS + MAX_STOP_SEQS * MAX_STOP_SEQ_LEN
NUM_INTS = _BIAS + MAX_LOGIT_BIAS
NUM_FLOATS = _FLOAT_SCALARS + MAX_LOGIT_BIAS


def pack_inserts(
    inserts: Sequence[SlotInsert], eos_token_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ints int64 [n, NUM_INTS], floats float32 [n, NUM_FLOATS], tokens int64 [n, longest], for n requests."""
    ints = np.full((len(inserts), NUM_INTS), -1, np.int64)
    floats = np.zeros((len(inserts), NUM_FLOATS), np.float32)
    tokens = np.full((len(inserts), max(len(insert.token_ids) for insert in inserts)), -1, np.int64)
    for row, insert in enumerate(inserts):
        tokens[row, : len(insert.token_ids)] = insert.token_ids
        _pack(insert, eos_token_ids, ints[row], floats[row])
    return ints, floats, tokens


def _pack(insert: SlotInsert, eos_token_ids: Sequence[int], ints: np.ndarray, floats: np.ndarray) -> None:
    params, num_tokens = insert.params, len(insert.token_ids)
    ints[:_INT_SCALARS] = (
        insert.slot,
        insert.num_prompt_tokens,
        num_tokens,
        num_tokens - insert.num_prompt_tokens,
        insert.num_computed_tokens,
        params.min_tokens,
        params.max_tokens,
        params.top_k,
        params.seed,
        -1 if params.logprobs is None else params.logprobs,
    )
    if not params.ignore_eos:
        ints[_EOS : _EOS + len(eos_token_ids)] = eos_token_ids
    ints[_STOP_IDS : _STOP_IDS + len(params.stop_token_ids)] = params.stop_token_ids
    lengths = ints[_SEQ_LENS:_SEQS]
    lengths[:] = 0
    for index, sequence in enumerate(params.stop_token_seqs):
        lengths[index] = len(sequence)
        start = _SEQS + index * MAX_STOP_SEQ_LEN
        ints[start : start + len(sequence)] = sequence
    floats[:_FLOAT_SCALARS] = (
        params.temperature,
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
    )
    for index, (token, bias) in enumerate(params.logit_bias.items()):
        ints[_BIAS + index] = token
        floats[_FLOAT_SCALARS + index] = bias
