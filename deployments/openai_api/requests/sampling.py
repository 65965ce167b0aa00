"""From a validated HTTP request to the sampling parameters of its sequences."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from actors.text.tokenizer import Tokenizer
from cluster.api_errors import ApiError, bad_request, shown
from cluster.grammar import Grammar
from cluster.reasoning import ReasoningMarks
from cluster.sampling_params import MAX_BAD_SEQ_LEN, MAX_LOGPROBS, SamplingParams
from deployments.openai_api.requests.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest

DEFAULT_COMPLETION_TOKENS = 16
_SEED_RANGE = 2**63


class ModelLimits(NamedTuple):
    """What the loaded model allows: tokens of prompt plus output, and ids below ``vocab_size``; and how long an answer is where
    its request does not say, None for as long as fits."""

    max_model_len: int
    vocab_size: int
    default_max_tokens: int | None = None


def assign_seed(request: GenerationRequest) -> int:
    """The client's seed, or a random one: a request must be repeatable on another engine.

    The engine's seeds are not negative; ``engine_seed`` maps those that are, and the client keeps seeing its own.
    """
    return secrets.randbits(63) if request.seed is None else request.seed


def engine_seed(seed: int) -> int:
    """``seed`` as engines take it."""
    return seed % _SEED_RANGE


def sampling_params(
    request: GenerationRequest,
    prompt_len: int,
    seed: int,
    limits: ModelLimits,
    bad_token_seqs: tuple[tuple[int, ...], ...] = (),
    grammar: Grammar | None = None,
    marks: ReasoningMarks | None = None,
) -> SamplingParams:
    """Parameters of one sequence behind a prompt of ``prompt_len`` tokens; ``bad_token_seqs`` are those of bad_words, ``grammar``
    is what the request comes to, and ``marks`` are around the reasoning that its budget bounds.

    Raises:
        ApiError: prompt and output do not fit the model, or a token id is not in its vocabulary.
    """
    max_tokens = _max_tokens(request, prompt_len, limits)
    if request.min_tokens > max_tokens:
        raise bad_request(f"min_tokens ({request.min_tokens}) must be at most max_tokens ({max_tokens})", "min_tokens")
    _check_ids(request.stop_token_ids, "stop_token_ids", limits.vocab_size)
    for i, sequence in enumerate(request.stop_token_seqs):
        _check_ids(sequence, f"stop_token_seqs.{i}", limits.vocab_size)
    allowed = request.allowed_token_ids or []
    _check_ids(allowed, "allowed_token_ids", limits.vocab_size)
    logprobs, prompt_logprobs = _logprobs(request)
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_logit_bias(request, limits.vocab_size),
        allowed_token_ids=tuple(allowed),
        bad_token_seqs=bad_token_seqs,
        seed=engine_seed(seed),
        max_tokens=max(max_tokens, 1),
        min_tokens=request.min_tokens,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        stop_token_seqs=tuple(tuple(seq) for seq in request.stop_token_seqs),
        ignore_eos=request.ignore_eos,
        grammar=grammar,
        thinking_token_budget=None if marks is None else _thinking_budget(request),
        reasoning_marks=marks,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _thinking_budget(request: GenerationRequest) -> int | None:
    return request.asked_thinking_budget[1] if isinstance(request, ChatCompletionRequest) else None


def bad_token_seqs(bad_words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The tokens of words that may not be generated, each as it is and behind a space, where a tokenizer writes it otherwise.

    Raises:
        ApiError: a word has no tokens, or too many.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for i, word in enumerate(bad_words):
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False)) if text.strip() else ()
            if not 0 < len(ids) <= MAX_BAD_SEQ_LEN:
                raise bad_request(
                    f"bad_words.{i}: must have 1 to {MAX_BAD_SEQ_LEN} tokens, {shown(text)} has {len(ids)}",
                    f"bad_words.{i}",
                )
            sequences[ids] = None
    return tuple(sequences)


def asked_max_tokens(request: GenerationRequest) -> tuple[str, int | None]:
    """The field that bounds the answer, and its value; None if that is left to the server."""
    if isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens


def _max_tokens(request: GenerationRequest, prompt_len: int, limits: ModelLimits) -> int:
    max_model_len = limits.max_model_len
    check_prompt_len(prompt_len, "messages" if isinstance(request, ChatCompletionRequest) else "prompt", max_model_len)
    room = max_model_len - prompt_len
    name, wanted = asked_max_tokens(request)
    if isinstance(request, ChatCompletionRequest):
        default, lowest = room, 1
        if limits.default_max_tokens is not None:
            default = min(limits.default_max_tokens, room)
    else:
        default = min(DEFAULT_COMPLETION_TOKENS, room)
        if limits.default_max_tokens is not None:
            default = min(default, limits.default_max_tokens)
        lowest = 0 if isinstance(request, CompletionRequest) and request.echo else 1
    if wanted is None:
        return max(default, min(request.min_tokens, room))
    if wanted < lowest:
        exception = " (0 is allowed with echo=true)" if isinstance(request, CompletionRequest) else ""
        raise bad_request(f"{name} must be at least {lowest}, got {wanted}{exception}", name)
    if wanted > room:
        where = "messages" if isinstance(request, ChatCompletionRequest) else "prompt"
        raise context_exceeded(
            max_model_len,
            f"you requested {prompt_len + wanted} tokens ({prompt_len} in the {where}, {wanted} in the completion). "
            f"At most {room} fit behind this prompt: lower {name}, or shorten the {where}.",
            name,
        )
    return wanted


def _logprobs(request: GenerationRequest) -> tuple[int | None, int | None]:
    if isinstance(request, ChatCompletionRequest):
        if request.top_logprobs and not request.logprobs:
            raise bad_request("top_logprobs is only allowed with logprobs=true", "top_logprobs")
        return (request.top_logprobs or 0) if request.logprobs else None, request.prompt_logprobs
    assert isinstance(request, CompletionRequest)
    prompt_logprobs = request.prompt_logprobs
    if request.echo and request.logprobs is not None:
        prompt_logprobs = max(request.logprobs, prompt_logprobs or 0)
    return request.logprobs, prompt_logprobs


def _logit_bias(request: GenerationRequest, vocab_size: int) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in request.logit_bias.items():
        bias[int(key)] = value or 0.0
    _check_ids(bias, "logit_bias", vocab_size)
    return bias


def check_prompt_len(prompt_len: int, param: str, max_model_len: int) -> None:
    """Refuse a prompt of so many tokens if no room is left behind it."""
    if prompt_len >= max_model_len:
        raise context_exceeded(
            max_model_len,
            f"your {param} resulted in {prompt_len} tokens, which leaves none for the completion. Shorten the {param}.",
            param,
        )


def truncated(token_ids: list[int], request: GenerationRequest, limits: ModelLimits) -> list[int]:
    """As much of a prompt as the request wants; the very list if that is all of it.

    Raises:
        ApiError: that is nothing.
    """
    most = request.truncate_prompt_tokens
    if most is None:
        return token_ids
    if most < 0:
        name, answer = asked_max_tokens(request)
        most = limits.max_model_len - max(answer or 1, 1)
        if most < 1:
            says = (
                f"{name} asks for {answer} tokens of the completion, which leaves none for your prompt. Reduce {name}."
            )
            raise context_exceeded(limits.max_model_len, says, name)
    if len(token_ids) <= most:
        return token_ids
    return token_ids[-most:] if request.truncation_side == "left" else token_ids[:most]


def context_exceeded(max_model_len: int, what: str, param: str) -> ApiError:
    """For a request that is longer than the context; client libraries look for OpenAI's words."""
    message = f"This model's maximum context length is {max_model_len} tokens. However, {what}"
    return bad_request(message, param, "context_length_exceeded")


def check_prompt_logprobs(prompts: Sequence[list[int]], n: int, num_top: int | None, limits: ModelLimits) -> None:
    """Refuse to report more log-probabilities of prompts than one full context has, or a quarter of a million: each choice shows
    those of its prompt, so that a short request could ask for gigabytes."""
    if num_top is None:
        return
    count, most = n * (num_top + 1) * sum(map(len, prompts)), max(2**18, (MAX_LOGPROBS + 1) * limits.max_model_len)
    if count > most:
        raise bad_request(
            f"prompt_logprobs, or logprobs with echo: {count} log-probabilities of prompts for all choices together; "
            f"at most {most} are reported in one request",
            "prompt_logprobs",
        )


def check_prompt_ids(token_ids: list[int], param: str, vocab_size: int) -> None:
    """Refuse ids that the model does not have."""
    _check_ids(token_ids, param, vocab_size)


def _check_ids(token_ids, param: str, vocab_size: int) -> None:
    worst = max(token_ids, default=-1)
    if worst >= vocab_size:
        where = f"{param}.{token_ids.index(worst)}" if isinstance(token_ids, list) else param
        raise bad_request(f"{where}: token ids of this model are below {vocab_size}, got {worst}", where)
