"""Requests of the OpenAI-compatible API: their fields, their limits, and what is refused by name.

Fields follow OpenAI's API reference; extensions have vLLM's names. A field that is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from cluster.api_errors import bad_request
from cluster.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_SEQS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_SEQ_LEN,
    MAX_STOP_SEQS,
    MAX_STOP_TOKEN_IDS,
)
from deployments.openai_api.requests.fields import CHAT, COMPLETION, STREAM_OPTIONS, ShortText
from deployments.openai_api.requests.messages import MAX_MESSAGES, ChatMessage, settled_messages
from deployments.openai_api.requests.validation import RequestPart, TokenId, UnknownFields, settled, validated, whole
from deployments.openai_api.requests.wording import shown

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_N = 128
MAX_FIELDS = 256
MAX_RESUMED_TOKENS = 2**20
MAX_RESUMED_CHOICES = 1024
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_CHARS = 2**16

BadWord = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_STRING_CHARS)]


def _none_if_false(value: Any) -> Any:
    """A client of both endpoints may write a chat's false."""
    return None if value is False else value


def _one_or_many(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("field_value", "must be a string or a list of strings")
    return value


def _resumed_tokens(value: Any) -> list[int]:
    """Up to a million, looked at in Python: pydantic would not let other threads run meanwhile."""
    if not isinstance(value, list) or len(value) > MAX_RESUMED_TOKENS:
        raise PydanticCustomError(
            "field_value", "must be a list of at most {most} token ids", {"most": MAX_RESUMED_TOKENS}
        )
    for token in value:
        if type(token) is not int or not 0 <= token < 2**31:
            raise PydanticCustomError("field_value", "token ids must be integers in [0, 2147483648)")
    return value


def token_ids(ids: list[Any], where: str) -> list[int]:
    """``ids``, which may be millions: looked at in Python, as pydantic would not let other threads run meanwhile.

    Raises:
        ApiError: 400 that names the first that is no token id.
    """
    for j, token in enumerate(ids):
        if type(token) is float and token.is_integer():
            return token_ids(list(map(whole, ids)), where)
        if type(token) is not int or not 0 <= token < 2**31:
            raise bad_request(f"{where}.{j}: token ids must be integers in [0, 2147483648), got {shown(token)}", where)
    return ids


class StreamOptions(RequestPart):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool = False

    @property
    def with_usage(self) -> bool:
        """Whether a last chunk tells the usage; who asks for it in every chunk need not ask for that one, too."""
        return self.continuous_usage_stats if self.include_usage is None else self.include_usage

    @property
    def with_usage_in_every_chunk(self) -> bool:
        return self.with_usage and self.continuous_usage_stats


class ResumedChoice(RequestPart):
    """What a client has of one choice."""

    token_ids: Annotated[list[int], PlainValidator(_resumed_tokens)]
    finish_reason: Literal["stop", "length"] | None = None


class Resume(RequestPart):
    """What a client has of an answer whose connection broke; it re-sends its request with it and goes on from there."""

    fingerprint: ShortText
    choices: Annotated[list[ResumedChoice], FailFast()] = Field(min_length=1, max_length=MAX_RESUMED_CHOICES)

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)


class GenerationRequest(RequestPart):
    """What completions and chat completions have in common."""

    model: ShortText | None = None
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    min_tokens: int = Field(0, ge=0, lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_LOGIT_BIAS
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MAX_N)
    best_of: int | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_one_or_many)] = Field(
        default_factory=list
    )
    include_stop_str_in_output: bool = False
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    stop_token_seqs: list[Annotated[list[TokenId], Field(min_length=1, max_length=MAX_STOP_SEQ_LEN)]] = Field(
        default_factory=list, max_length=MAX_STOP_SEQS
    )
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS)
    bad_words: list[BadWord] = Field(default_factory=list, max_length=MAX_BAD_SEQS // 2)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    truncate_prompt_tokens: int | None = Field(None, ge=-1, lt=2**31)
    truncation_side: Literal["left", "right"] = "left"
    request_id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,256}$")] | None = None
    skip_special_tokens: bool = True
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    cache_salt: ShortText = ""
    resume: Resume | None = None


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Any
    echo: bool = False
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_none_if_false)] = None
    add_special_tokens: bool = True

    def prompts(self) -> list[str | list[int]]:
        """The prompts in order, whichever of the four forms they came in.

        Raises:
            ApiError: not a string, a list of token ids, or a list of either; or an empty one.
        """
        prompt = self.prompt
        several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
        prompts = list(prompt) if several else [prompt]
        for i, item in enumerate(prompts):
            where = f"prompt.{i}" if several else "prompt"
            if isinstance(item, list):
                prompts[i] = token_ids(item, where)
            elif not isinstance(item, str):
                raise bad_request(
                    f"{where} must be a string, a list of token ids, or a list of either; got {shown(item)}", where
                )
            if not item and isinstance(item, list):
                raise bad_request(f"{where} must not be an empty list", where)
        return prompts


class Thinking(RequestPart):
    """Whether the model is to reason, in words of Anthropic's and DeepSeek's clients."""

    type: Literal["enabled", "disabled"]


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    continue_final_message: bool = False
    echo: bool = False
    documents: list[dict[str, str]] = Field(default_factory=list, max_length=MAX_DOCUMENTS)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    chat_template: Annotated[str, StringConstraints(max_length=MAX_TEMPLATE_CHARS)] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)

    @model_validator(mode="after")
    def _one_end(self) -> ChatCompletionRequest:
        # Whose last message goes on has no turn to begin, unless the request insists on both.
        if self.continue_final_message and "add_generation_prompt" not in self.model_fields_set:
            self.add_generation_prompt = False
        return self


_Request = TypeVar("_Request", bound=GenerationRequest)
_Part = TypeVar("_Part", bound=RequestPart)


def parse_request(
    kind: type[_Request],
    body: Any,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    unknown_fields: UnknownFields = "refuse",
) -> _Request:
    """Validate a decoded JSON body; ``defaults`` are fields that it has where it names none.

    Raises:
        ApiError: 400 that names the field at fault and what it may be.
    """
    ignore = unknown_fields == "ignore"
    fields = settled(_object(body), COMPLETION if kind is CompletionRequest else CHAT, ignore_unknown=ignore)
    if isinstance(fields.get("stream_options"), dict):
        fields["stream_options"] = settled(fields["stream_options"], STREAM_OPTIONS, "stream_options", ignore)
    if kind is ChatCompletionRequest and isinstance(fields.get("messages"), list):
        fields["messages"] = settled_messages(fields["messages"], ignore)
    request = validated(kind, {**defaults, **fields})
    if request.best_of not in (None, request.n):
        raise bad_request(
            f"best_of must equal n ({request.n}), got {request.best_of}: all choices are returned",
            "best_of",
            "unsupported_parameter",
        )
    if request.resume is not None and not (request.stream and request.return_token_ids and request.seed is not None):
        raise bad_request(
            "resume is only allowed with stream=true, return_token_ids=true and the answer's seed", "resume"
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options is only allowed with stream=true", "stream_options")
    return request


def parse_fields(kind: type[_Part], body: Any, place: str, unknown_fields: UnknownFields = "refuse") -> _Part:
    """Validate a decoded JSON body of an endpoint that generates nothing; ``place`` is that of its fields in ``fields.ROWS``.

    Raises:
        ApiError: as ``parse_request``.
    """
    ignore = unknown_fields == "ignore"
    fields = settled(_object(body), place, ignore_unknown=ignore)
    if isinstance(fields.get("messages"), list):
        fields["messages"] = settled_messages(fields["messages"], ignore)
    return validated(kind, fields)


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {shown(body)}")
    if len(body) > MAX_FIELDS:
        raise bad_request(f"the body has {len(body)} fields; this server knows fewer than {MAX_FIELDS}")
    return body
