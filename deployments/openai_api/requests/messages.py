"""Messages of a conversation: what they hold, and how a chat template gets them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field
from pydantic_core import PydanticCustomError

from actors.text.tool_arguments import ToolArguments
from cluster.api_errors import bad_request
from deployments.openai_api.requests.fields import CONTENT_PART, MESSAGE, TEXT_ONLY, ShortText
from deployments.openai_api.requests.validation import RequestPart, settled
from deployments.openai_api.requests.wording import shown

MAX_MESSAGES = 4096
MAX_TOOL_CALLS = 256


def _text_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("field_value", "must be a string or a list of parts")
    return value


def _arguments(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, (str, dict)):
        raise PydanticCustomError("field_value", "must be an object, or a string that holds one as JSON")
    return value


class TextPart(RequestPart):
    """A content part; text is the only type the models here read."""

    type: Literal["text"]
    text: str


class CalledFunction(RequestPart):
    """Which function an assistant called, and with what."""

    name: ShortText
    arguments: Annotated[Any, BeforeValidator(_arguments)] = ""


class ToolCall(RequestPart):
    """A call that an assistant made. ``index`` is of a stream's chunks, which clients send back as they came."""

    id: ShortText | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def as_template_call(self) -> dict[str, Any]:
        """The call as chat templates read it."""
        function = {"name": self.function.name, "arguments": ToolArguments.read(self.function.arguments)}
        call: dict[str, Any] = {"type": self.type, "function": function}
        return call if self.id is None else {"id": self.id, **call}


# Fields that only one role has.
_ONLY_OF = {
    "tool_calls": "assistant",
    "reasoning_content": "assistant",
    "reasoning": "assistant",
    "tool_call_id": "tool",
}


class ChatMessage(RequestPart):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[TextPart], FailFast(), Field(max_length=MAX_MESSAGES), BeforeValidator(_text_parts)] = (
        Field(default_factory=list)
    )
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], FailFast()] = Field(default_factory=list, max_length=MAX_TOOL_CALLS)
    tool_call_id: ShortText | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def as_template_message(self) -> dict[str, Any]:
        """The message as chat templates read it; ``developer`` is OpenAI's newer word for ``system``."""
        text = "\n".join(part.text for part in self.content)
        # Templates tell an assistant's calls from its words by a content that is none.
        content = None if self.tool_calls and "content" not in self.model_fields_set else text
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_call() for call in self.tool_calls]
        return message


def settled_messages(messages: list[Any], ignore_unknown: bool) -> list[Any]:
    """``messages`` without what changes nothing; what is no object is left for the validation.

    Raises:
        ApiError: 400, a message has a field, or a part of a kind, that nothing can be done with.
    """
    if len(messages) > MAX_MESSAGES:
        return messages
    return [
        _settled_message(message, f"messages.{i}", ignore_unknown) if isinstance(message, dict) else message
        for i, message in enumerate(messages)
    ]


def _settled_message(message: dict[str, Any], path: str, ignore_unknown: bool) -> dict[str, Any]:
    kept = settled(message, MESSAGE, path, ignore_unknown)
    for name in _ONLY_OF.keys() & kept.keys():
        if not kept[name]:
            del kept[name]
        elif kept.get("role") != (role := _ONLY_OF[name]):
            raise bad_request(f"{path}.{name}: only a message of role {role} has it", f"{path}.{name}")
    parts = kept.get("content")
    if isinstance(parts, list) and len(parts) <= MAX_MESSAGES:
        kept["content"] = [
            _settled_part(part, f"{path}.content.{i}", ignore_unknown) if isinstance(part, dict) else part
            for i, part in enumerate(parts)
        ]
    return kept


def _settled_part(part: dict[str, Any], path: str, ignore_unknown: bool) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind != "text":
        raise bad_request(f"{path}.type: {TEXT_ONLY}, got {shown(kind)}", f"{path}.type", "unsupported_value")
    return settled(part, CONTENT_PART, path, ignore_unknown)
