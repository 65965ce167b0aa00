"""The device state of a request slot, field by field: the one list, from which tensors, inserts, twins and C++ derive."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cluster.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_SEQ_LEN,
    MAX_BAD_SEQS,
    MAX_EOS_TOKEN_IDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_SEQ_LEN,
    MAX_STOP_SEQS,
    MAX_STOP_TOKEN_IDS,
)

if TYPE_CHECKING:
    from paddle import Tensor

# Sizes that are the same in every state; `slots`, `max_model_len` and `blocks` (of a slot) are chosen when it is allocated.
FIXED_SIZES = {
    "eos_ids": MAX_EOS_TOKEN_IDS,
    "stop_ids": MAX_STOP_TOKEN_IDS,
    "num_stop_seqs": MAX_STOP_SEQS,
    "stop_seq_len": MAX_STOP_SEQ_LEN,
    "biases": MAX_LOGIT_BIAS,
    "allowed_ids": MAX_ALLOWED_TOKEN_IDS,
    "num_bad_seqs": MAX_BAD_SEQS,
    "bad_seq_len": MAX_BAD_SEQ_LEN,
}
# The request value that is too long for a column: it comes as an array of its own, which the kernels copy.
TOKENS = "token_ids"


@dataclass(frozen=True, slots=True)
class SlotField:
    """What is declared of a field.

    Attributes:
        name: of the tensor.
        dtype: bool, int32, int64 or float32.
        sizes: its axes, each a name or a number.
        doc: what it means.
        empty: every element of an empty slot; pads what a request says in fewer values than a slot holds.
        request: the request's value that an insert puts there, by name (``actors.runner.slot_insert`` knows them); "" for none.
        inserted: what an insert puts there otherwise.
        on_host: lies in pinned memory when the rest is on a GPU.
    """

    name: str
    dtype: str
    sizes: tuple[str | int, ...]
    doc: str
    empty: Any
    request: str
    inserted: Any
    on_host: bool

    @property
    def per_slot(self) -> bool:
        return self.sizes[0] == "slots"

    @property
    def row_sizes(self) -> tuple[str | int, ...]:
        """Axes of one slot's row."""
        return self.sizes[1:]


def _state(
    dtype: str,
    *sizes: str | int,
    doc: str,
    empty: Any = 0,
    request: str = "",
    inserted: Any = None,
    on_host: bool = False,
) -> Any:
    declared = (dtype, sizes, doc, empty, request, empty if inserted is None else inserted, on_host)
    return field(metadata={"declared": declared})


def _slot(dtype: str, *sizes: str | int, **declared: Any) -> Any:
    """A field with a row for each slot, of `sizes`."""
    return _state(dtype, "slots", *sizes, **declared)


@dataclass(frozen=True, slots=True)
class SlotFields:
    """The tensors; -1 stands for "none" in ids, blocks and paddings. A new field is a line here, with its ops below."""

    token_ids_all: Tensor = _slot(
        "int64", "max_model_len", empty=-1, request=TOKENS, doc="prompt, then generated tokens; -1 beyond"
    )
    prompt_lens: Tensor = _slot(
        "int64", request="prompt_len", doc="length of the prompt the client sent; never changes while the request lives"
    )
    prefill_lens: Tensor = _slot(
        "int64",
        request="prefill_len",
        doc="tokens to compute before decoding goes on (prompt, plus outputs of earlier attempts)",
    )
    step_idx: Tensor = _slot("int64", request="step_idx", doc="generated tokens so far")
    seq_lens_this_time: Tensor = _slot("int32", doc="tokens to compute in this step")
    seq_lens_encoder: Tensor = _slot("int32", doc="the prefill part of seq_lens_this_time")
    seq_lens_decoder: Tensor = _slot("int32", request="num_computed", doc="tokens that are already in the KV cache")
    stop_flags: Tensor = _slot("bool", empty=True, inserted=False, doc="the slot must not run")
    is_block_step: Tensor = _slot("bool", empty=False, doc="the slot pauses, because its next block-table entry is -1")
    block_tables: Tensor = _slot("int32", "blocks", empty=-1, doc="physical KV blocks")
    sampled_token_ids: Tensor = _slot("int64", 1, empty=-1, doc="what this step sampled")
    num_sampled: Tensor = _slot("int32", doc="tokens that this step sampled")
    stop_reason: Tensor = _slot("int32", doc="a `StopReason`")
    matched_stop: Tensor = _slot(
        "int64",
        empty=-1,
        doc="the token id (EOS, STOP_TOKEN) or the index of the sequence (STOP_SEQUENCE) that ended it",
    )
    not_need_stop: Tensor = _state("bool", 1, empty=False, on_host=True, doc="some slot still runs")
    eos_token_id: Tensor = _slot(
        "int64", "eos_ids", empty=-1, request="eos_token_ids", doc="all -1 when the request ignores EOS"
    )
    stop_token_ids: Tensor = _slot(
        "int64", "stop_ids", empty=-1, request="stop_token_ids", doc="ids that end generation"
    )
    stop_seqs_len: Tensor = _slot(
        "int32", "num_stop_seqs", request="stop_seq_lens", doc="lengths of stop_seqs; 0 = unused"
    )
    stop_seqs: Tensor = _slot(
        "int64",
        "num_stop_seqs",
        "stop_seq_len",
        empty=-1,
        request="stop_token_seqs",
        doc="token sequences that end generation",
    )
    min_dec_len: Tensor = _slot("int64", request="min_tokens", doc="least generated tokens")
    max_dec_len: Tensor = _slot("int64", request="max_tokens", doc="most generated tokens")
    temperature: Tensor = _slot("float32", request="temperature", doc="divides the logits; 0 takes the largest")
    top_p: Tensor = _slot("float32", empty=1.0, request="top_p", doc="probability to keep")
    min_p: Tensor = _slot("float32", request="min_p", doc="least share of the best probability to keep")
    penalty_score: Tensor = _slot("float32", empty=1.0, request="repetition_penalty", doc="1 is off")
    presence_score: Tensor = _slot("float32", request="presence_penalty", doc="of generated tokens")
    frequency_score: Tensor = _slot("float32", request="frequency_penalty", doc="of generated tokens, for each time")
    top_k: Tensor = _slot("int32", request="top_k", doc="tokens to keep; 0 keeps all")
    seeds: Tensor = _slot("int64", request="seed", doc="with the absolute position it fixes a random draw")
    logit_bias_ids: Tensor = _slot("int64", "biases", empty=-1, request="logit_bias_ids", doc="tokens with a bias")
    logit_bias_values: Tensor = _slot("float32", "biases", request="logit_bias_values", doc="what their logits get")
    allowed_token_ids: Tensor = _slot(
        "int64",
        "allowed_ids",
        empty=-1,
        request="allowed_token_ids",
        doc="the only tokens to sample; the first is -1: all may be",
    )
    bad_seqs_len: Tensor = _slot("int32", "num_bad_seqs", request="bad_seq_lens", doc="lengths of bad_seqs; 0 = unused")
    bad_seqs: Tensor = _slot(
        "int64",
        "num_bad_seqs",
        "bad_seq_len",
        empty=-1,
        request="bad_token_seqs",
        doc="token sequences that are not generated",
    )
    num_logprobs: Tensor = _slot(
        "int32", empty=-1, request="logprobs", doc="alternatives reported with each token, -1 for no log-probabilities"
    )


FIELDS = tuple(SlotField(entry.name, *entry.metadata["declared"]) for entry in fields(SlotFields))


@dataclass(frozen=True, slots=True)
class StateOp:
    """An op whose first arguments are fields: those that it only reads, and those that it may write."""

    name: str
    reads: frozenset[str]
    writes: frozenset[str]

    @property
    def fields(self) -> tuple[SlotField, ...]:
        """In the order in which the op takes them."""
        return tuple(entry for entry in FIELDS if entry.name in self.reads | self.writes)


def _op(name: str, reads: str = "", writes: str = "") -> StateOp:
    op = StateOp(name, frozenset(reads.split()), frozenset(writes.split()))
    unknown = (op.reads | op.writes) - {entry.name for entry in FIELDS}
    assert not unknown and not op.reads & op.writes, f"{name}: {unknown or op.reads & op.writes}"
    return op


STATE_OPS = (
    _op("insert_requests", writes=" ".join(entry.name for entry in FIELDS if entry.per_slot)),
    _op(
        "apply_step",
        reads="prompt_lens prefill_lens step_idx",
        writes="seq_lens_this_time seq_lens_encoder seq_lens_decoder stop_flags is_block_step block_tables",
    ),
    _op("recover_block", reads="seq_lens_decoder block_tables", writes="is_block_step"),
    _op("pack_tokens", reads="token_ids_all prompt_lens step_idx seq_lens_this_time seq_lens_decoder"),
    _op(
        "detect_stop",
        reads="token_ids_all prompt_lens step_idx eos_token_id stop_token_ids stop_seqs stop_seqs_len min_dec_len max_dec_len",
        writes="stop_flags stop_reason matched_stop",
    ),
    _op(
        "update_inputs",
        reads="prompt_lens stop_flags block_tables",
        writes="token_ids_all step_idx seq_lens_this_time seq_lens_encoder seq_lens_decoder is_block_step sampled_token_ids "
        "num_sampled not_need_stop",
    ),
    _op(
        "pack_outputs",
        reads="seq_lens_decoder sampled_token_ids num_sampled stop_reason matched_stop not_need_stop",
    ),
    _op("pack_logprobs", reads="num_sampled num_logprobs"),
    _op(
        "apply_penalties",
        reads="token_ids_all prompt_lens step_idx eos_token_id stop_token_ids min_dec_len penalty_score presence_score "
        "frequency_score logit_bias_ids logit_bias_values allowed_token_ids bad_seqs_len bad_seqs",
    ),
    _op("apply_temperature", reads="temperature"),
    _op("sample", reads="prompt_lens step_idx temperature top_p min_p top_k seeds"),
)
