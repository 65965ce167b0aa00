"""The device state of all request slots: one row a slot, written only by the state ops."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import paddle

from cluster.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_SEQ_LEN, MAX_STOP_SEQS, MAX_STOP_TOKEN_IDS

MAX_EOS_TOKEN_IDS = 8


def _tensor(dtype: str, *sizes: str, fill: Any = 0) -> Any:
    """A field by dtype, names of its sizes (`field_arrays` knows their values) and what an empty slot holds."""
    return field(metadata={"dtype": dtype, "sizes": sizes, "fill": fill})


def _slots(dtype: str, *sizes: str, fill: Any = 0) -> Any:
    """A field with one row a slot."""
    return _tensor(dtype, "max_num_seqs", *sizes, fill=fill)


@dataclass(frozen=True, slots=True)
class ShareInputs:
    """Per-slot state, all contiguous; -1 stands for "none" in ids, blocks and paddings.

    Attributes:
        token_ids_all: prompt, then generated tokens; -1 beyond.
        prompt_lens: length of the prompt the client sent; never changes while the request lives.
        prefill_lens: tokens to compute before decoding goes on (prompt, plus outputs of earlier attempts).
        step_idx: generated tokens so far.
        seq_lens_this_time: tokens to compute in this step.
        seq_lens_encoder: the prefill part of seq_lens_this_time.
        seq_lens_decoder: tokens that are already in the KV cache.
        stop_flags: the slot must not run.
        is_block_step: the slot pauses, because its next block-table entry is -1.
        block_tables: physical KV blocks.
        sampled_token_ids, num_sampled: what this step sampled.
        stop_reason: a `StopReason`.
        matched_stop: the token id (EOS, STOP_TOKEN) or the index of the sequence (STOP_SEQUENCE) that ended it.
        not_need_stop: some slot still runs.
        eos_token_id: all -1 when the request ignores EOS.
        stop_seqs, stop_seqs_len: token sequences that end generation; length 0 = unused.
        min_dec_len, max_dec_len: bounds of the generated length, in tokens.
        top_k: 0 keeps all tokens.
        num_logprobs: alternatives reported with each token, -1 for no log-probabilities.
        block_size: tokens a KV block holds.
    """

    token_ids_all: paddle.Tensor = _slots("int64", "max_model_len", fill=-1)
    prompt_lens: paddle.Tensor = _slots("int64")
    prefill_lens: paddle.Tensor = _slots("int64")
    step_idx: paddle.Tensor = _slots("int64")
    seq_lens_this_time: paddle.Tensor = _slots("int32")
    seq_lens_encoder: paddle.Tensor = _slots("int32")
    seq_lens_decoder: paddle.Tensor = _slots("int32")
    stop_flags: paddle.Tensor = _slots("bool", fill=True)
    is_block_step: paddle.Tensor = _slots("bool", fill=False)
    block_tables: paddle.Tensor = _slots("int32", "blocks_per_seq", fill=-1)
    sampled_token_ids: paddle.Tensor = _slots("int64", "tokens_per_step", fill=-1)
    num_sampled: paddle.Tensor = _slots("int32")
    stop_reason: paddle.Tensor = _slots("int32")
    matched_stop: paddle.Tensor = _slots("int64", fill=-1)
    not_need_stop: paddle.Tensor = _tensor("bool", "tokens_per_step", fill=False)
    eos_token_id: paddle.Tensor = _slots("int64", "eos_token_ids", fill=-1)
    stop_token_ids: paddle.Tensor = _slots("int64", "stop_token_ids", fill=-1)
    stop_seqs: paddle.Tensor = _slots("int64", "stop_seqs", "stop_seq_len", fill=-1)
    stop_seqs_len: paddle.Tensor = _slots("int32", "stop_seqs")
    min_dec_len: paddle.Tensor = _slots("int64")
    max_dec_len: paddle.Tensor = _slots("int64")
    temperature: paddle.Tensor = _slots("float32")
    top_p: paddle.Tensor = _slots("float32", fill=1.0)
    min_p: paddle.Tensor = _slots("float32")
    penalty_score: paddle.Tensor = _slots("float32", fill=1.0)
    presence_score: paddle.Tensor = _slots("float32")
    frequency_score: paddle.Tensor = _slots("float32")
    top_k: paddle.Tensor = _slots("int32")
    seeds: paddle.Tensor = _slots("int64")
    logit_bias_ids: paddle.Tensor = _slots("int64", "logit_bias", fill=-1)
    logit_bias_values: paddle.Tensor = _slots("float32", "logit_bias")
    num_logprobs: paddle.Tensor = _slots("int32", fill=-1)
    block_size: int = 0

    def __post_init__(self) -> None:
        # Checked once, here, because the ops write in place every step: a write into a strided view would be lost.
        for entry in fields(self):
            if entry.metadata and not getattr(self, entry.name).is_contiguous():
                raise ValueError(f"{entry.name} must be contiguous: ops write it in place")
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}, must be at least 1")


def field_arrays(max_num_seqs: int, max_model_len: int, block_size: int) -> dict[str, np.ndarray]:
    """Every field of empty slots as NumPy arrays: all stopped, no blocks, no tokens."""
    for name, value in (("max_num_seqs", max_num_seqs), ("max_model_len", max_model_len), ("block_size", block_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    sizes = {
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "blocks_per_seq": -(-max_model_len // block_size),
        "tokens_per_step": 1,
        "eos_token_ids": MAX_EOS_TOKEN_IDS,
        "stop_token_ids": MAX_STOP_TOKEN_IDS,
        "stop_seqs": MAX_STOP_SEQS,
        "stop_seq_len": MAX_STOP_SEQ_LEN,
        "logit_bias": MAX_LOGIT_BIAS,
    }
    return {
        entry.name: np.full(
            [sizes[size] for size in entry.metadata["sizes"]], entry.metadata["fill"], entry.metadata["dtype"]
        )
        for entry in fields(ShareInputs)
        if entry.metadata
    }


def allocate_share_inputs(max_num_seqs: int, max_model_len: int, block_size: int, place: Any = None) -> ShareInputs:
    """State for empty slots on `place` (default: the CPU). On a GPU `not_need_stop` lies in pinned host memory.

    Raises:
        ValueError: a size is below 1.
    """
    place = paddle.CPUPlace() if place is None else place
    arrays = field_arrays(max_num_seqs, max_model_len, block_size)
    tensors = {name: paddle.to_tensor(array, place=place) for name, array in arrays.items()}
    if tensors["token_ids_all"].place.is_gpu_place():
        tensors["not_need_stop"] = paddle.to_tensor(arrays["not_need_stop"], place=paddle.CUDAPinnedPlace())
    return ShareInputs(**tensors, block_size=block_size)
