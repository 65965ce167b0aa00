"""Objects and fields of a request that say what its answer must be like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from cluster.api_errors import shown
from cluster.grammar import MAX_GRAMMAR_CHARS
from deployments.openai_api.requests.fields import (
    RESPONSE_FORMAT,
    RESPONSE_SCHEMA,
    STRUCTURED_OUTPUTS,
    ShortText,
)
from deployments.openai_api.requests.validation import RequestPart, field_error

# Regular expressions and grammars; of JSON schemas and choices the sum is bounded where they become text.
GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choices = Annotated[list[Annotated[str, StringConstraints(max_length=MAX_GRAMMAR_CHARS)]], Field(min_length=1)]


def _schema(value: Any) -> Any:
    if not isinstance(value, (dict, str)):
        raise PydanticCustomError("field_value", "must be a JSON schema")
    if isinstance(value, str) and len(value) > MAX_GRAMMAR_CHARS:
        raise PydanticCustomError("field_value", "must have at most {most} characters", {"most": MAX_GRAMMAR_CHARS})
    return value


JsonSchema = Annotated[
    Any,
    BeforeValidator(_schema),
    WithJsonSchema({"type": ["object", "string"], "maxLength": MAX_GRAMMAR_CHARS}),
]


def _tag(value: Any) -> Any:
    if not isinstance(value, (dict, str)):
        raise PydanticCustomError("field_value", "must be a structural tag")
    if isinstance(value, str) and len(value) > MAX_GRAMMAR_CHARS:
        raise PydanticCustomError("field_value", "must have at most {most} characters", {"most": MAX_GRAMMAR_CHARS})
    return value


StructuralTag = Annotated[
    Any, BeforeValidator(_tag), WithJsonSchema({"type": ["object", "string"], "maxLength": MAX_GRAMMAR_CHARS})
]


class ResponseSchema(RequestPart):
    """A schema in OpenAI's words; what it is called is for people, and it is strict whatever it says."""

    place = RESPONSE_SCHEMA

    name: ShortText | None = None
    schema_: JsonSchema = Field(None, alias="schema")


class ResponseFormat(RequestPart):
    """The form of an answer, in OpenAI's words."""

    place = RESPONSE_FORMAT

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: ResponseSchema | None = None
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    @model_validator(mode="after")
    def _has_its_tags(self) -> ResponseFormat:
        for name in ("format", "structures", "triggers"):
            if self.type != "structural_tag" and getattr(self, name) is not None:
                says = f'is only for the type "structural_tag", got the type {shown(self.type)}'
                raise field_error((name,), None, says)
        if self.type == "structural_tag" and (self.format is None) == (self.structures is None):
            raise field_error(("type",), None, "structural_tag has format, or structures with triggers")
        return self

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type != "json_schema" and self.json_schema is not None:
            says = f'is only for the type "json_schema", got the type {shown(self.type)}'
            raise field_error(("json_schema",), None, says)
        if self.type == "json_schema" and self.json_schema is None:
            raise field_error(("json_schema",), None, "must be an object with name and schema, got null")
        return self


class StructuredOutputs(RequestPart):
    """The form of an answer, in vLLM's words."""

    place = STRUCTURED_OUTPUTS

    json_: JsonSchema = Field(None, alias="json")
    json_object: bool = False
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    structural_tag: StructuralTag = None
    whitespace_pattern: ShortText | None = None
    disable_any_whitespace: bool = False
