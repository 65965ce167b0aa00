"""Prompts and lists of token ids, which may be millions: looked at in Python, as pydantic would not let other threads run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cluster.api_errors import shown
from deployments.openai_api.requests.schemas import NULL
from deployments.openai_api.requests.validation import field_error, whole

# Looked at in one call, within a tenth of a millisecond.
_AT_ONCE = 2**12
_ID_SCHEMA = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31}


def token_ids(ids: Any, most: int | None = None, path: tuple[int, ...] = ()) -> list[int]:
    """``ids`` as integers.

    Args:
        most: length of the list.
        path: where it stands in its field.
    Raises:
        ValidationError: names the first that is no token id.
    """
    if not isinstance(ids, list) or (most is not None and len(ids) > most):
        bound = "" if most is None else f"at most {most} "
        raise field_error(path, ids, f"must be a list of {bound}token ids, got {shown(ids)}")
    for begin in range(0, len(ids), _AT_ONCE):
        part = ids[begin : begin + _AT_ONCE]
        if set(map(type, part)) != {int} or min(part) < 0 or max(part) >= 2**31:
            return _with_a_float(ids, most, path)
    return ids


def _with_a_float(ids: list[Any], most: int | None, path: tuple[int, ...]) -> list[int]:
    """Ids of which one is no integer, or out of range; whole floats are integers, as JSON has it."""
    for j, token in enumerate(ids):
        if type(token) is float and token.is_integer():
            return token_ids(list(map(whole, ids)), most, path)
        if type(token) is not int or not 0 <= token < 2**31:
            says = f"token ids must be integers in [0, 2147483648), got {shown(token)}"
            raise field_error((*path, j), token, says)
    return ids


@dataclass(frozen=True)
class TokenIdList:
    """Marks a field that is a list of at most ``most`` token ids."""

    most: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: token_ids(value, self.most))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "array", "items": _ID_SCHEMA, **({} if self.most is None else {"maxItems": self.most})}


class _TokenIdKeys:
    """Marks an object whose keys are token ids."""

    _WRITTEN = re.compile("0|[1-9][0-9]{0,9}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        values = schema.pop("additionalProperties")
        return {**schema, "patternProperties": {f"^({self._WRITTEN.pattern})$": values}, "additionalProperties": NULL}

    def _checked(self, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if not self._WRITTEN.fullmatch(key):
                raise field_error((), key, f"keys must be token ids, got {shown(key[:40])}")
        return value


TOKEN_ID_KEYS = _TokenIdKeys()


class Prompts(NamedTuple):
    """Of a completion.

    Attributes:
        items: texts or token ids, in order.
        in_list: whether they came in a list of them.
    """

    items: list[str | list[int]]
    in_list: bool

    def name(self, index: int) -> str:
        """Of one in errors."""
        return f"prompt.{index}" if self.in_list else "prompt"


def _prompts(value: Any) -> Prompts:
    """Whichever of the four forms they came in."""
    if isinstance(value, str):
        return Prompts([value], False)
    if not isinstance(value, list):
        raise PydanticCustomError("field_value", "must be a string, a list of token ids, or a list of either")
    if not value:
        raise field_error((), value, "must not be an empty list")
    if not isinstance(value[0], (str, list)):
        return Prompts([token_ids(value)], False)
    items = list(value)
    for i, item in enumerate(items):
        if isinstance(item, list):
            items[i] = token_ids(item, None, (i,))
        elif not isinstance(item, str):
            raise field_error((i,), item, f"must be a string or a list of token ids, got {shown(item)}")
        if item == []:
            raise field_error((i,), item, "must not be an empty list")
    return Prompts(items, True)


_IDS_SCHEMA = {"type": "array", "items": _ID_SCHEMA, "minItems": 1}
_TEXT_SCHEMA = {"type": "string"}
_MANY_SCHEMA = {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, _IDS_SCHEMA]}, "minItems": 1}
PromptField = Annotated[
    Any, PlainValidator(_prompts), WithJsonSchema({"anyOf": [_TEXT_SCHEMA, _IDS_SCHEMA, _MANY_SCHEMA]})
]
