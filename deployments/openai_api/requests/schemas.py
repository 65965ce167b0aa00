"""Types of requests whose JSON has more than one form, and the JSON Schema that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

NULL = {"type": "null"}
# What a value can never be.
NOTHING: dict[str, Any] = {"not": {}}
_ABOUT = ("title", "description", "default")


def or_nothing(schema: dict[str, Any], harmless: Iterable[Any] = ()) -> dict[str, Any]:
    """``schema``, or one of the values that ask for nothing, as null does. Objects of these may have more fields of null."""
    about = {name: schema[name] for name in _ABOUT if name in schema}
    own = {name: value for name, value in schema.items() if name not in about}
    forms = own["anyOf"] if own.keys() == {"anyOf"} else [own] if own != NOTHING else []
    more = [form for form in (*map(_schema_of, harmless), NULL) if form not in forms]
    return {"anyOf": [*forms, *more], **about} if own else dict(schema)


def _schema_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {"const": value}
    fields = {name: _schema_of(item) for name, item in value.items()}
    return {"type": "object", "properties": fields, "required": list(value), "additionalProperties": NULL}


@dataclass(frozen=True)
class OrText:
    """Marks a list that may be written as a text, which stands for its one item.

    Args:
        item: of a text.
        what: the list's items, in errors.
    """

    item: Callable[[str], Any]
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._as_list, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        many = handler(core)
        one = many["items"] if many["items"].get("type") == "string" else {"type": "string"}
        return {"anyOf": [one, many]}

    def _as_list(self, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, str):
            try:
                return validate([self.item(value)])
            except ValidationError as error:
                raise _of_all(error, value) from None
        if not isinstance(value, list):
            raise PydanticCustomError("field_value", "must be a string or a list of {what}", {"what": self.what})
        return validate(value)


# Kinds of errors that this project makes itself.
_OWN_ERRORS = frozenset({"field_value", "refused", "unknown_field"})


def _of_all(error: ValidationError, value: Any) -> ValidationError:
    """What is wrong with a part of ``value``, said of ``value`` itself."""
    first = error.errors(include_url=False)[0]
    kind: Any = first["type"]
    if kind in _OWN_ERRORS:
        kind = PydanticCustomError(kind, first["msg"], first.get("ctx"))
    details = InitErrorDetails(type=kind, loc=(), input=value, ctx=first.get("ctx", {}))
    return ValidationError.from_exception_data("", [details])


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


def _valid_unicode(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PydanticCustomError("field_value", "must be valid Unicode") from None
    return value


def valid_unicode_inside(value: Any) -> Any:
    """``value`` if all texts in it are valid Unicode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("field_value", "must be valid Unicode") from None
    except RecursionError:
        raise PydanticCustomError("field_value", "must not be nested so deep") from None
    return value


WITHOUT_NULLS = AfterValidator(_without_nulls)
# Pydantic looks at a text of any length only where it has bounds.
Text = Annotated[str, AfterValidator(_valid_unicode)]
