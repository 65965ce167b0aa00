"""Messages of a conversation: what they hold, and how a chat template gets them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from actors.text.tool_arguments import ToolArguments
from deployments.openai_api.requests.fields import (
    CALLED_FUNCTION,
    CONTENT_PART,
    MESSAGE,
    TEXT_ONLY,
    THINKING,
    TOOL_CALL,
    ShortText,
)
from deployments.openai_api.requests.schemas import WITHOUT_NULLS, OrText, Text, valid_unicode_inside
from deployments.openai_api.requests.tools import Tools
from deployments.openai_api.requests.validation import RequestPart, check_type, field_error

MAX_MESSAGES = 4096
MAX_TOOL_CALLS = 256
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_CHARS = 2**16


def _arguments(value: Any) -> Any:
    if not isinstance(value, (str, dict)):
        raise PydanticCustomError("field_value", "must be an object, or a string that holds one as JSON")
    return valid_unicode_inside(value)


class TextPart(RequestPart):
    """A content part; text is the only type the models here read."""

    place = CONTENT_PART

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        is_refusal = isinstance(value, dict) and value.get("type") == "refusal"
        return check_type(value, "text", "what an assistant said goes into a text part" if is_refusal else TEXT_ONLY)


class CalledFunction(RequestPart):
    """Which function an assistant called, and with what."""

    place = CALLED_FUNCTION

    name: ShortText
    arguments: Annotated[Any, BeforeValidator(_arguments), WithJsonSchema({"type": ["string", "object"]})] = ""


class ToolCall(RequestPart):
    """A call that an assistant made. ``index`` is of a stream's chunks, which clients send back as they came."""

    place = TOOL_CALL

    id: ShortText | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_function(cls, value: Any) -> Any:
        return check_type(value, "function", "calls of functions alone can be told to a model")

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

    place = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[TextPart],
        FailFast(),
        Field(max_length=MAX_MESSAGES),
        OrText(lambda text: {"type": "text", "text": text}, "parts"),
    ] = Field(default_factory=list)
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], FailFast()] = Field(default_factory=list, max_length=MAX_TOOL_CALLS)
    tool_call_id: ShortText | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_of_today(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("role") == "function":
            says = 'OpenAI\'s older form of the role tool, which answers a tool_call_id; got "function"'
            raise field_error(("role",), "function", says, "unsupported_value")
        return value

    @model_validator(mode="after")
    def _of_its_role(self) -> ChatMessage:
        for name, role in _ONLY_OF.items():
            if (value := getattr(self, name)) and self.role != role:
                raise field_error((name,), value, f"only a message of role {role} has it")
        return self

    def as_template_message(self) -> dict[str, Any]:
        """The message as chat templates read it; ``developer`` is OpenAI's newer word for ``system``."""
        text = "\n".join(part.text for part in self.content)
        # Templates tell an assistant's calls from its words by a content that is none.
        content = None if self.tool_calls and "content" not in self.model_fields_set else text
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            if value := getattr(self, name):
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_call() for call in self.tool_calls]
        return message


class Thinking(RequestPart):
    """Whether the model is to reason, in words of Anthropic's and DeepSeek's clients."""

    place = THINKING

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(None, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _bounds_what_there_is(self) -> Thinking:
        if self.type == "disabled" and self.budget_tokens:
            raise field_error(("budget_tokens",), self.budget_tokens, 'is only allowed with the type "enabled"')
        return self


class TemplatedChat(RequestPart):
    """A conversation and what its template makes of it: the prompt of a chat."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    continue_final_message: bool = False
    tools: Tools = Field(default_factory=list)
    documents: list[Annotated[dict[Text, Text | None], WITHOUT_NULLS]] = Field(
        default_factory=list, max_length=MAX_DOCUMENTS
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    chat_template: Annotated[str, StringConstraints(max_length=MAX_TEMPLATE_CHARS)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(valid_unicode_inside)] = Field(
        default_factory=dict, max_length=32
    )

    @model_validator(mode="after")
    def _one_end(self) -> TemplatedChat:
        # Whose last message goes on has no turn to begin.
        if self.continue_final_message:
            if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
                says = "cannot be true together with add_generation_prompt"
                raise field_error(("continue_final_message",), True, says)
            self.add_generation_prompt = False
        return self

    @property
    def wants_thinking(self) -> bool | None:
        """Whether the model is to think, by the first of the names that says it; None if none does."""
        for name in ("enable_thinking", "thinking"):
            if isinstance(variable := self.chat_template_kwargs.get(name), bool):
                return variable
        if self.enable_thinking is not None:
            return self.enable_thinking
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"
