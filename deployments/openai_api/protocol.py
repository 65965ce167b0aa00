"""Requests of the OpenAI-compatible API: their fields, their limits, and what is refused by name.

Fields follow OpenAI's API reference; extensions have vLLM's names. A field that is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cluster.api_errors import ApiError, bad_request
from cluster.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_SEQ_LEN, MAX_STOP_SEQS, MAX_STOP_TOKEN_IDS

# What OpenAI's client has in an answer's message, and sends back with it; only empty ones can be taken.
_ANSWER_FIELDS = frozenset({"refusal", "annotations", "audio", "function_call", "tool_calls"})

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_MESSAGES = 4096
MAX_N = 128
MAX_SHORT_TEXT = 1024
MAX_FIELDS = 256
MAX_RESUMED_TOKENS = 2**20
MAX_RESUMED_CHOICES = 1024

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
ShortText = Annotated[str, StringConstraints(max_length=MAX_SHORT_TEXT)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_STRING_CHARS)]


def _one_or_many(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("stop_type", "must be a string or a list of strings")
    return value


def _resumed_tokens(value: Any) -> list[int]:
    """Up to a million, looked at in Python: pydantic would not let other threads run meanwhile."""
    if not isinstance(value, list) or len(value) > MAX_RESUMED_TOKENS:
        raise PydanticCustomError(
            "token_ids", "must be a list of at most {most} token ids", {"most": MAX_RESUMED_TOKENS}
        )
    for token in value:
        if type(token) is not int or not 0 <= token < 2**31:
            raise PydanticCustomError("token_ids", "token ids must be integers in [0, 2147483648)")
    return value


def _text_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content_type", "must be a string or a list of parts")
    return value


def _without_nulls(value: Any) -> Any:
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


class Fields(BaseModel):
    """Of a request or a part of one: each is known, and of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Fields):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False

    @property
    def with_usage(self) -> bool:
        """Whether a last chunk tells the usage; who asks for it in every chunk need not ask for that one, too."""
        return self.continuous_usage_stats if self.include_usage is None else self.include_usage

    @property
    def with_usage_in_every_chunk(self) -> bool:
        return self.with_usage and self.continuous_usage_stats


class ResumedChoice(Fields):
    """What a client has of one choice."""

    token_ids: Annotated[list[int], PlainValidator(_resumed_tokens)]
    finish_reason: Literal["stop", "length"] | None = None


class Resume(Fields):
    """What a client has of an answer whose connection broke; it re-sends its request with it and goes on from there."""

    fingerprint: ShortText
    choices: Annotated[list[ResumedChoice], FailFast()] = Field(min_length=1, max_length=MAX_RESUMED_CHOICES)

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)


class GenerationRequest(Fields):
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
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_one_or_many)] = []
    include_stop_str_in_output: bool = False
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    stop_token_seqs: list[Annotated[list[TokenId], Field(min_length=1, max_length=MAX_STOP_SEQ_LEN)]] = Field(
        default_factory=list, max_length=MAX_STOP_SEQS
    )
    ignore_eos: bool = False
    stream: bool = False
    stream_options: Annotated[StreamOptions, BeforeValidator(_without_nulls)] | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool = False
    skip_special_tokens: bool = True
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    cache_salt: ShortText = ""
    user: ShortText | None = None
    metadata: dict[ShortText, ShortText] | None = Field(None, max_length=16)
    store: bool | None = None
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    request_id: ShortText | None = None
    resume: Resume | None = None


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Any
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True

    def prompts(self) -> list[str | list[int]]:
        """The prompts in order, whichever of the four forms they came in.

        Raises:
            ApiError: not a string, a list of token ids, or a list of either; or an empty one.
        """
        prompt = self.prompt
        several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
        prompts = prompt if several else [prompt]
        for i, item in enumerate(prompts):
            where = f"prompt.{i}" if several else "prompt"
            if isinstance(item, list):
                for token in item:
                    if type(token) is not int or not 0 <= token < 2**31:
                        raise bad_request(
                            f"{where}: token ids must be integers in [0, 2147483648), got {_shown(token)}", where
                        )
            elif not isinstance(item, str):
                raise bad_request(
                    f"{where} must be a string, a list of token ids, or a list of either; got {_shown(item)}", where
                )
            if not item and isinstance(item, list):
                raise bad_request(f"{where} must not be an empty list", where)
        return prompts


class TextPart(Fields):
    """A content part; text is the only type the models here read."""

    type: Literal["text"]
    text: str


class ChatMessage(Fields):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], FailFast(), Field(max_length=MAX_MESSAGES), BeforeValidator(_text_parts)] = []
    name: ShortText | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: item
            for name, item in value.items()
            if item is not None and not (name in _ANSWER_FIELDS and item in ([], {}, ""))
        }

    def as_template_message(self) -> dict[str, str]:
        """The message as chat templates read it; ``developer`` is OpenAI's newer word for ``system``."""
        text = "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)
    parallel_tool_calls: bool | None = None


_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "modalities": (["text"],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "web_search_options": (),
    "verbosity": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}

_Request = TypeVar("_Request", bound=GenerationRequest)
_Kind = TypeVar("_Kind", bound=Fields)


def parse_request(kind: type[_Request], body: Any, defaults: Mapping[str, Any] = MappingProxyType({})) -> _Request:
    """Validate a decoded JSON body; ``defaults`` are fields that it has where it names none.

    Raises:
        ApiError: 400 that names the field at fault and what it may be.
    """
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {_shown(body)}")
    fields = _without_nulls(body)
    if len(fields) > MAX_FIELDS:
        raise bad_request(f"the body has {len(fields)} fields; this server knows fewer than {MAX_FIELDS}")
    for name in _HARMLESS.keys() & fields.keys():
        value = fields.pop(name)
        if value not in _HARMLESS[name]:
            raise bad_request(f"{name} is not supported by this server; leave it out", name, "unsupported_parameter")
    best_of = fields.pop("best_of", None)
    try:
        request = kind.model_validate({**defaults, **fields})
    except ValidationError as error:
        raise _as_api_error(error, kind) from None
    if best_of not in (None, request.n):
        raise bad_request(
            f"best_of must equal n ({request.n}), got {_shown(best_of)}", "best_of", "unsupported_parameter"
        )
    if request.resume is not None and not (request.stream and request.return_token_ids and request.seed is not None):
        raise bad_request(
            "resume is only allowed with stream=true, return_token_ids=true and the answer's seed", "resume"
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options is only allowed with stream=true", "stream_options")
    return request


def parse_fields(kind: type[_Kind], body: Any, harmless: Mapping[str, tuple[Any, ...]] = MappingProxyType({})) -> _Kind:
    """Validate a decoded JSON body of an endpoint that generates nothing.

    Args:
        harmless: fields that are not supported, with the values that change nothing.
    Raises:
        ApiError: 400 that names the field at fault and what it may be.
    """
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {_shown(body)}")
    fields = _without_nulls(body)
    for name in harmless.keys() & fields.keys():
        if fields.pop(name) not in harmless[name]:
            raise bad_request(f"{name} is not supported by this server; leave it out", name, "unsupported_parameter")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _as_api_error(error, kind) from None


def _as_api_error(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    # Members of a union appear in the location under their type's name; a client only knows field names and indices.
    known = {
        name
        for model in (kind, ChatMessage, TextPart, StreamOptions, Resume, ResumedChoice)
        for name in model.model_fields
    }
    path = [str(part) for part in first["loc"] if isinstance(part, int) or part in known] or [
        str(p)[:80] for p in first["loc"]
    ]
    param = ".".join(path)
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:80]
        param = ".".join([*path, name]) if name not in path else param
        return bad_request(f"unknown field {_shown(name)}", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"{param} is required", param, "missing_required_parameter")
    message = first["msg"][0].lower() + first["msg"][1:]
    return bad_request(f"{param}: {message}, got {_shown(first['input'])}", param)


def _shown(value: Any) -> str:
    """A value in an error message, cut to a length that no client can abuse."""
    if isinstance(value, (list, dict)):
        parts = value if isinstance(value, list) else [*value, *value.values()]
        if len(value) > 16 or any(isinstance(part, (list, dict)) or len(str(part)) > 80 for part in parts):
            return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)} items"
    if isinstance(value, str):
        value = value[:81]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
