"""Requests of the OpenAI-compatible API: their fields, their limits, and what is refused by name.

Fields follow OpenAI's API reference; extensions have vLLM's names. A field that is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    PrivateAttr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cluster.api_errors import bad_request, shown
from cluster.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_SEQS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_SEQ_LEN,
    MAX_STOP_SEQS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from deployments.openai_api.requests.answer_forms import (
    Choices,
    GrammarText,
    JsonSchema,
    ResponseFormat,
    StructuredOutputs,
)
from deployments.openai_api.requests.fields import (
    CHAT,
    COMPLETION,
    RESUME,
    RESUMED_CHOICE,
    STREAM_OPTIONS,
    ShortText,
)
from deployments.openai_api.requests.messages import TemplatedChat
from deployments.openai_api.requests.schemas import WITHOUT_NULLS, OrText
from deployments.openai_api.requests.token_lists import TOKEN_ID_KEYS, PromptField, TokenIdList
from deployments.openai_api.requests.tools import AllowedTools, ChosenTool, ToolChoice
from deployments.openai_api.requests.validation import RequestPart, TokenId, UnknownFields, field_error, validated

MAX_N = 128
MAX_FIELDS = 256
MAX_RESUMED_TOKENS = 2**20
MAX_RESUMED_CHOICES = 1024

BadWord = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_STRING_CHARS)]


_NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def _none_if_false(value: Any) -> Any:
    """A client of both endpoints may write a chat's false."""
    return None if value is False else value


_PROMPT_LENGTH = {"type": "integer", "minimum": 1, "exclusiveMaximum": 2**31}


def _truncation(value: int | None) -> int | None:
    if value is not None and value != -1 and not 1 <= value < 2**31:
        raise PydanticCustomError("field_value", "must be at least 1, or -1, and less than 2147483648")
    return value


class StreamOptions(RequestPart):
    """Options of a streamed answer."""

    place = STREAM_OPTIONS

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

    place = RESUMED_CHOICE

    token_ids: Annotated[list[int], TokenIdList(MAX_RESUMED_TOKENS)]
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class Resume(RequestPart):
    """What a client has of an answer whose connection broke; it re-sends its request with it and goes on from there."""

    place = RESUME

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
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)] | None], WITHOUT_NULLS, TOKEN_ID_KEYS] = (
        Field(default_factory=dict, max_length=MAX_LOGIT_BIAS)
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MAX_N)
    best_of: int | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), OrText(str, "strings")] = Field(
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
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema = None
    guided_regex: GrammarText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
    guided_whitespace_pattern: ShortText | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    truncate_prompt_tokens: Annotated[
        int | None, AfterValidator(_truncation), WithJsonSchema({"anyOf": [{"const": -1}, _PROMPT_LENGTH]})
    ] = None
    truncation_side: Literal["left", "right"] = "left"
    request_id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,256}$")] | None = None
    skip_special_tokens: bool = True
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    cache_salt: ShortText = ""
    resume: Resume | None = None


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    place = COMPLETION

    prompt: PromptField
    echo: bool = False
    logprobs: Annotated[
        int | None,
        Field(ge=0, le=MAX_LOGPROBS),
        BeforeValidator(_none_if_false, json_schema_input_type=_NumLogprobs | Literal[False]),
    ] = None
    add_special_tokens: bool = True


class ChatCompletionRequest(GenerationRequest, TemplatedChat):
    """Body of POST /v1/chat/completions."""

    place = CHAT

    # Nothing is echoed of a conversation, so that an answer has a token at least.
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    thinking_token_budget: int | None = Field(None, ge=0, lt=2**31)
    thinking_budget: int | None = Field(None, ge=0, lt=2**31)
    _tool_places: list[int] | None = PrivateAttr(None)

    @property
    def asked_thinking_budget(self) -> tuple[str, int | None]:
        """The field that bounds the reasoning, and its value; None if nothing does."""
        given = self._thinking_budgets()
        return next(iter(given.items()), ("thinking_token_budget", None))

    def _thinking_budgets(self) -> dict[str, int]:
        thinking = self.thinking
        named = {
            "thinking_token_budget": self.thinking_token_budget,
            "thinking_budget": self.thinking_budget,
            "thinking.budget_tokens": None
            if thinking is None or thinking.type != "enabled"
            else thinking.budget_tokens,
        }
        return {name: value for name, value in named.items() if value is not None}

    @model_validator(mode="after")
    def _has_one_budget(self) -> ChatCompletionRequest:
        first, *others = self._thinking_budgets().items() or [("", None)]
        for name, value in others:
            if value != first[1]:
                says = f"must be that of {first[0]} ({first[1]}), got {value}"
                raise field_error(tuple(name.split(".")), value, says)
        return self

    @property
    def tool_places(self) -> Sequence[int]:
        """Where each of ``tools`` stood in the body."""
        return range(len(self.tools)) if self._tool_places is None else self._tool_places

    @model_validator(mode="after")
    def _offers_what_it_chooses(self) -> ChatCompletionRequest:
        choice = self.tool_choice
        if choice in ("none", "auto"):
            return self
        names = [tool.function.name for tool in self.tools]
        if not names:
            raise field_error(("tool_choice",), choice, "is only allowed with tools")
        if isinstance(choice, ChosenTool):
            _check_is_offered(choice, names, ("tool_choice",))
        elif isinstance(choice, AllowedTools):
            allowed = choice.allowed_tools
            for index, tool in enumerate(allowed.tools):
                _check_is_offered(tool, names, ("tool_choice", "allowed_tools", "tools", index))
            kept = {tool.function.name for tool in allowed.tools}
            self._tool_places = [place for place, name in enumerate(names) if name in kept]
            self.tools = [self.tools[place] for place in self._tool_places]
            self.tool_choice = allowed.mode
        return self


def _check_is_offered(tool: ChosenTool, names: list[str], place: tuple[str | int, ...]) -> None:
    name = tool.function.name
    if name not in names:
        raise field_error((*place, "function", "name"), name, f"must be one of the tools, got {shown(name)}")


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
    fields = {name: value for name, value in _object(body).items() if value is not None}
    request = validated(kind, {**defaults, **fields}, unknown_fields)
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
    options = request.stream_options
    if options is not None and options.with_usage and not request.stream:
        raise bad_request("stream_options is only allowed with stream=true", "stream_options")
    return request


def parse_fields(kind: type[_Part], body: Any, unknown_fields: UnknownFields = "refuse") -> _Part:
    """Validate a decoded JSON body of an endpoint that generates nothing.

    Raises:
        ApiError: as ``parse_request``.
    """
    return validated(kind, _object(body), unknown_fields)


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {shown(body)}")
    if len(body) > MAX_FIELDS:
        raise bad_request(f"the body has {len(body)} fields; this server knows fewer than {MAX_FIELDS}")
    return body
