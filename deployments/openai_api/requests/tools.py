"""Tools that a chat offers to its model, and which of them the model is to call."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    StringConstraints,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from deployments.openai_api.requests.fields import (
    ALLOWED_TOOLS,
    CHOSEN_FUNCTION,
    CHOSEN_TOOL,
    OFFERED_TOOLS,
    TOOL,
    TOOL_FUNCTION,
)
from deployments.openai_api.requests.schemas import Text, valid_unicode_inside
from deployments.openai_api.requests.validation import RequestPart, check_type

MAX_TOOLS = 1024
# As text it stands between quotes or tags of the models' own.
_NAME = r"^[A-Za-z0-9_.:/-]{1,128}$"
NONE, AUTO, REQUIRED = "none", "auto", "required"


def _name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(_NAME[1:-1], value):
        raise PydanticCustomError("field_value", "must be 1 to 128 letters, digits and _.:/-")
    return value


FunctionName = Annotated[str, StringConstraints(pattern=_NAME), BeforeValidator(_name)]


def _of_function(value: Any) -> Any:
    return check_type(value, "function", "functions are the only tools of the models here")


def _of_choice(value: Any) -> Any:
    return check_type(
        value,
        "function",
        'must be "function" or "allowed_tools", since functions are the only tools of the models here',
    )


class FunctionDefinition(RequestPart):
    """A function that a model may call."""

    place = TOOL_FUNCTION

    name: FunctionName
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(valid_unicode_inside)] | None = None
    strict: bool = False


class Tool(RequestPart):
    """A tool; functions are the only ones."""

    place = TOOL

    type: Literal["function"] = "function"
    function: FunctionDefinition

    _kind = model_validator(mode="before")(_of_function)

    def as_template_tool(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        return {"type": self.type, "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class ChosenFunction(RequestPart):
    """The name of a function that is to be called."""

    place = CHOSEN_FUNCTION

    name: FunctionName


class ChosenTool(RequestPart):
    """A tool that is to be called."""

    place = CHOSEN_TOOL

    type: Literal["function"] = "function"
    function: ChosenFunction

    _kind = model_validator(mode="before")(_of_choice)


class OfferedTools(RequestPart):
    """Which of a request's tools are offered, and whether one is to be called."""

    place = OFFERED_TOOLS

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], FailFast(), Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(RequestPart):
    """A choice that leaves tools out. A parsed request has those that are left, and the mode as its choice."""

    place = ALLOWED_TOOLS

    type: Literal["allowed_tools"]
    allowed_tools: OfferedTools


def _choice(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict):
        if value.get("type") == "allowed_tools":
            return AllowedTools.model_validate(value, context=info.context)
        return ChosenTool.model_validate(value, context=info.context)
    if value not in (NONE, AUTO, REQUIRED):
        raise PydanticCustomError("field_value", 'must be "none", "auto", "required" or an object that names functions')
    return value


Tools = Annotated[list[Tool], FailFast(), Field(max_length=MAX_TOOLS)]
ToolChoice = Annotated[Literal["none", "auto", "required"] | ChosenTool | AllowedTools, BeforeValidator(_choice)]
