"""How one request wants its tokens chosen and its generation ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from cluster.api_errors import shown
from cluster.errors import InvalidRequestError
from cluster.grammar import Grammar
from cluster.reasoning import ReasoningMarks
from cluster.wording import sentence

MAX_LOGIT_BIAS = 300
# Of the model; 32 are one look of a warp.
MAX_EOS_TOKEN_IDS = 32
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 32
MAX_STOP_SEQS = 8
MAX_STOP_SEQ_LEN = 16
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_BAD_SEQS = 128
MAX_BAD_SEQ_LEN = 8
MAX_LOGPROBS = 20
_TOKEN_IDS = 2**31


class _Number(NamedTuple):
    """What a number may be; None for no bound."""

    is_integer: bool = False
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    is_optional: bool = False


# As a request's (``deployments/openai_api/requests/protocol.py``).
NUMBERS: Mapping[str, _Number] = MappingProxyType(
    {
        "temperature": _Number(ge=0, le=2),
        "top_p": _Number(gt=0, le=1),
        "top_k": _Number(True, ge=-1, lt=2**31),
        "min_p": _Number(ge=0, le=1),
        "presence_penalty": _Number(ge=-2, le=2),
        "frequency_penalty": _Number(ge=-2, le=2),
        "repetition_penalty": _Number(ge=0.01, le=100),
        "seed": _Number(True, ge=-(2**63), lt=2**63),
        "max_tokens": _Number(True, ge=1, lt=2**31),
        "min_tokens": _Number(True, ge=0, lt=2**31),
        "thinking_token_budget": _Number(True, ge=0, lt=2**31, is_optional=True),
        "logprobs": _Number(True, ge=0, le=MAX_LOGPROBS, is_optional=True),
        "prompt_logprobs": _Number(True, ge=0, le=MAX_LOGPROBS, is_optional=True),
    }
)
_TOKEN_ID, _BIAS = _Number(True, ge=0, lt=_TOKEN_IDS), _Number(ge=-100, le=100)
_MOST_ITEMS: Mapping[str, int] = MappingProxyType(
    {
        "stop": MAX_STOP_STRINGS,
        "stop_token_ids": MAX_STOP_TOKEN_IDS,
        "stop_token_seqs": MAX_STOP_SEQS,
        "allowed_token_ids": MAX_ALLOWED_TOKEN_IDS,
        "bad_token_seqs": MAX_BAD_SEQS,
    }
)


@dataclass(slots=True, frozen=True)
class SamplingParams:
    """Validated sampling and stopping parameters; names follow OpenAI and vLLM.

    Attributes:
        temperature: 0 selects the most likely token; otherwise logits are divided by it.
        top_p: smallest set of tokens whose probability reaches it, (0, 1].
        top_k: number of most likely tokens kept; 0 keeps all, and so does -1, which becomes 0.
        min_p: tokens below min_p times the best probability are dropped, [0, 1].
        presence_penalty, frequency_penalty: over generated tokens, [-2, 2].
        repetition_penalty: over prompt and generated tokens, [0.01, 100], 1 is off.
        logit_bias: token id to additive bias, [-100, 100], at most MAX_LOGIT_BIAS entries.
        allowed_token_ids: the only tokens that may be sampled, at most MAX_ALLOWED_TOKEN_IDS; empty allows all.
        bad_token_seqs: token sequences that may not be generated: the last token of one is out of the question where those
            before it have just been generated. At most MAX_BAD_SEQS of at most MAX_BAD_SEQ_LEN tokens.
        seed: a 64-bit integer, which the ingress always assigns and makes not negative; with the absolute position it fixes every
            random draw.
        max_tokens, min_tokens: bounds of the generated length; no kind of stop takes effect on the first min_tokens tokens.
        stop: stop strings, matched on text by the ingress; at most MAX_STOP_STRINGS of at most MAX_STOP_STRING_CHARS characters.
        stop_token_ids: ids that end generation, reported as matched_stop.
        stop_token_seqs: token sequences that end generation, matched on the device.
        ignore_eos: do not end at the model's end-of-sequence tokens.
        grammar: what the text of the answer must be like; the end of its structure ends the answer. It goes before all that
            forbids tokens: where nothing that it allows is left, one of what it allows is taken.
        thinking_token_budget: most tokens of reasoning; the tokens that end it come behind them. None for no bound.
        reasoning_marks: where the reasoning begins and ends, assigned by the ingress; None where there is nothing to bound.
        logprobs: number of alternatives reported with each token, at most MAX_LOGPROBS; None for no log-probabilities.
        prompt_logprobs: the same for prompt tokens.

    Raises:
        InvalidRequestError: a value that no request may have, with its name and what it may be.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_token_seqs: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_token_seqs: tuple[tuple[int, ...], ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None
    thinking_token_budget: int | None = None
    reasoning_marks: ReasoningMarks | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        # Made for every request by its ingress and again by its engine: what is as by default need not be looked at.
        for (name, number), default, value in zip(NUMBERS.items(), _DEFAULT_NUMBERS, _NUMBERS(self)):
            if type(value) is type(default) and value == default:
                continue
            if value is not None or not number.is_optional:
                _check_number(name, value, number)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must be at most max_tokens ({self.max_tokens})", "min_tokens"
            )
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        for name, most in _MOST_ITEMS.items():
            if getattr(self, name) != ():
                object.__setattr__(self, name, _items(name, getattr(self, name), most))
        for i, text in enumerate(self.stop):
            _check_text(f"stop.{i}", text)
        _check_ids("stop_token_ids", self.stop_token_ids)
        _check_ids("allowed_token_ids", self.allowed_token_ids)
        for name, most in (("stop_token_seqs", MAX_STOP_SEQ_LEN), ("bad_token_seqs", MAX_BAD_SEQ_LEN)):
            if getattr(self, name) == ():
                continue
            sequences = tuple(_items(f"{name}.{i}", ids, most, 1) for i, ids in enumerate(getattr(self, name)))
            for i, ids in enumerate(sequences):
                _check_ids(f"{name}.{i}", ids)
            object.__setattr__(self, name, sequences)
        _check_bias(self.logit_bias)
        if type(self.ignore_eos) is not bool:
            _refuse("ignore_eos", "bool_type", self.ignore_eos)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise InvalidRequestError("grammar: must be a Grammar or None", "grammar")

    def with_seed(self, seed: int) -> SamplingParams:
        """The same with another seed, without looking at all of it again."""
        other = _restored(*_VALUES(self))
        object.__setattr__(other, "seed", seed)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        # What a dataclass with slots does by itself looks at its fields anew each time.
        return _restored, _VALUES(self)

    @property
    def has_penalties(self) -> bool:
        """Penalties, a bias, or forbidden tokens change the logits of every token."""
        return bool(
            self.logit_bias
            or self.allowed_token_ids
            or self.bad_token_seqs
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
        )

    @property
    def bounds_reasoning(self) -> bool:
        """Whether its tokens of reasoning are counted."""
        return self.thinking_token_budget is not None and self.reasoning_marks is not None

    @property
    def is_masked(self) -> bool:
        """Whether the tokens before it decide which one may come next."""
        return self.grammar is not None or self.bounds_reasoning


_NAMES = tuple(each.name for each in fields(SamplingParams))
_VALUES = attrgetter(*_NAMES)
_NUMBERS = attrgetter(*NUMBERS)
_DEFAULT_NUMBERS = tuple(each.default for name in NUMBERS for each in fields(SamplingParams) if each.name == name)


def _restored(*values: Any) -> SamplingParams:
    """The parameters that have these values, which were checked once."""
    made = object.__new__(SamplingParams)
    for name, value in zip(_NAMES, values, strict=True):
        object.__setattr__(made, name, value)
    return made


def _refuse(name: str, kind: str, value: Any, **bounds: Any) -> NoReturn:
    value = list(value) if isinstance(value, tuple) else value
    raise InvalidRequestError(f"{name}: {sentence(kind, bounds, '')}, got {shown(value)}", name)


def _check_number(name: str, value: Any, number: _Number) -> None:
    if isinstance(value, bool) or not isinstance(value, int if number.is_integer else (int, float)):
        _refuse(name, "int_type" if number.is_integer else "float_type", value)
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(name, "finite_number", value)
    if number.ge is not None and value < number.ge:
        _refuse(name, "greater_than_equal", value, ge=number.ge)
    if number.gt is not None and value <= number.gt:
        _refuse(name, "greater_than", value, gt=number.gt)
    if number.le is not None and value > number.le:
        _refuse(name, "less_than_equal", value, le=number.le)
    if number.lt is not None and value >= number.lt:
        _refuse(name, "less_than", value, lt=number.lt)


def _items(name: str, value: Any, most: int, least: int = 0) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        _refuse(name, "list_type", value)
    if len(value) < least:
        _refuse(name, "too_short", value, min_length=least)
    if len(value) > most:
        _refuse(name, "too_long", value, max_length=most)
    return tuple(value)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        _refuse(name, "string_type", text)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            _refuse(name, "string_unicode", text)
    if not text:
        _refuse(name, "string_too_short", text, min_length=1)
    if len(text) > MAX_STOP_STRING_CHARS:
        _refuse(name, "string_too_long", text, max_length=MAX_STOP_STRING_CHARS)


def _check_ids(name: str, ids: Sequence[Any]) -> None:
    for i, token in enumerate(ids):
        # Mostly it is one, and there may be a thousand.
        if type(token) is not int or not 0 <= token < _TOKEN_IDS:
            _check_number(f"{name}.{i}", token, _TOKEN_ID)


def _check_bias(bias: Any) -> None:
    if not isinstance(bias, dict):
        _refuse("logit_bias", "dict_type", bias)
    if len(bias) > MAX_LOGIT_BIAS:
        _refuse("logit_bias", "too_long", bias, max_length=MAX_LOGIT_BIAS)
    for token, value in bias.items():
        if type(token) is not int or not 0 <= token < _TOKEN_IDS:
            raise InvalidRequestError(f"logit_bias: keys must be token ids, got {shown(token)}", "logit_bias")
        _check_number(f"logit_bias.{token}", value, _BIAS)
