"""What the Python client returns: typed views of the API's JSON, with the whole object kept beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """A served model; ``max_model_len`` counts tokens of prompt plus output."""

    id: str
    max_model_len: int | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Model:
        return cls(raw["id"], raw.get("max_model_len"), raw)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def parse(cls, raw: dict[str, Any] | None) -> Usage | None:
        return None if raw is None else cls(raw["prompt_tokens"], raw["completion_tokens"], raw["total_tokens"])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, or in a stream the next piece of it.

    Attributes:
        index: among those of its choice.
        id: by which the tool's answer names it, and ``name``: of the function; None in a stream behind the first piece.
        arguments: JSON of an object, as far as it came.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str

    @classmethod
    def parse(cls, raw: dict[str, Any], index: int) -> ToolCall:
        function = raw.get("function") or {}
        return cls(raw.get("index", index), raw.get("id"), function.get("name"), function.get("arguments") or "")


@dataclass(frozen=True, slots=True)
class AnswerChoice:
    """One answer, or in a stream the next piece of it.

    Attributes:
        text: text of a completion, or content of a chat message.
        finish_reason: "stop", "length" or "tool_calls"; None while a stream goes on.
        stop_reason: the stop string, token id or token sequence that matched.
        token_ids: only with return_token_ids.
        logprobs: as the API reports them.
        reasoning: of a chat, where the model's reasoning is parted from its content.
        tool_calls: of a chat with tools.
    """

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: dict[str, Any] | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> AnswerChoice:
        message = raw.get("message") or raw.get("delta") or {}
        text = raw["text"] if "text" in raw else message.get("content") or ""
        return cls(
            raw["index"],
            text,
            raw.get("finish_reason"),
            raw.get("stop_reason"),
            raw.get("token_ids"),
            raw.get("logprobs"),
            message.get("reasoning") or message.get("reasoning_content") or "",
            [ToolCall.parse(call, i) for i, call in enumerate(message.get("tool_calls") or ())],
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, or one chunk of a stream.

    Attributes:
        seed: with which the same request gives the same answer again; in a stream on the first chunk of each choice.
        fingerprint: of the engine; equal seeds give equal answers where it is equal.
        usage: in a stream on the last chunk, if asked for.
    """

    id: str
    model: str
    choices: list[AnswerChoice]
    usage: Usage | None
    seed: int | None
    fingerprint: str | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Answer:
        return cls(
            raw["id"],
            raw["model"],
            [AnswerChoice.parse(choice) for choice in raw["choices"]],
            Usage.parse(raw.get("usage")),
            raw.get("seed"),
            raw.get("system_fingerprint"),
            raw,
        )

    @property
    def text(self) -> str:
        """Text of the first choice; "" if this chunk has none."""
        return self.choices[0].text if self.choices else ""
