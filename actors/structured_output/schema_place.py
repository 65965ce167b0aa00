"""Where in a JSON schema the grammar library's refusal comes from, which it does not say itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# Subschemas that are compiled to find the one at fault.
_MOST_TRIES = 200
_OF_NAMES = ("properties", "patternProperties")
_OF_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_DEFINITIONS = ("$defs", "definitions")
# What references lead to, and what the library is told of the whole; stays beside every part that is tried.
_SHARED = (*_DEFINITIONS, "x-guidance")


def place_of_error(schema: Any, reason: str, error_of: Callable[[Any], str]) -> tuple[str, str]:
    """The innermost part of ``schema`` that is refused.

    Args:
        reason: why the whole is.
        error_of: why a schema is refused, empty if it is not.
    Returns:
        Its JSON pointer ("#" for the whole), and why it is refused.
    """
    shared = {key: schema[key] for key in _SHARED if key in schema} if isinstance(schema, dict) else {}
    place, tries = "#", 0
    part = schema
    while True:
        for name, inner in _parts(part, at_root=place == "#"):
            tries += 1
            if tries > _MOST_TRIES:
                return place, reason
            if isinstance(inner, dict) and (error := error_of({**shared, **inner})):
                place, part, reason = f"{place}/{name}", inner, error
                break
        else:
            return place, reason.strip().removeprefix("ERROR: ")


def as_field(place: str) -> str:
    """A JSON pointer as the rest of a field's name: ``#/properties/a/anyOf/0`` is ``.properties.a.anyOf[0]``."""
    names = [name.replace("~1", "/").replace("~0", "~") for name in place.split("/")[1:]]
    is_index = [before in _OF_LISTS and name.isdecimal() for before, name in zip(["", *names], names)]
    return "".join(f"[{name}]" if index else f".{name}" for name, index in zip(names, is_index))


def _parts(schema: Any, at_root: bool) -> Iterator[tuple[str, Any]]:
    if not isinstance(schema, dict):
        return
    for key in _OF_NAMES + (_DEFINITIONS if at_root else ()):
        if isinstance(schema.get(key), dict):
            for name, inner in schema[key].items():
                yield f"{key}/{str(name).replace('~', '~0').replace('/', '~1')}", inner
    for key in _OF_LISTS:
        if isinstance(schema.get(key), list):
            for index, inner in enumerate(schema[key]):
                yield f"{key}/{index}", inner
    for key in _SINGLE:
        if key in schema:
            yield key, schema[key]
