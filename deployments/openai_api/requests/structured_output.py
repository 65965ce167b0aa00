"""What a request says about the form of its answer, in OpenAI's words or vLLM's newer or older ones, as one grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cluster.api_errors import ApiError, bad_request, shown
from cluster.grammar import ANY_OBJECT, CHOICE, JSON_SCHEMA, LARK, MAX_GRAMMAR_CHARS, REGEX, Grammar
from deployments.openai_api.requests.protocol import GenerationRequest

_FORMAT_TYPES = '"text", "json_object" or "json_schema"'
# Of a format's json_schema; what it is called and for matters to people alone, and whether it is strict to nobody: it always is.
_SCHEMA_FIELDS = ("name", "description", "schema", "strict")
# vLLM's names, within structured_outputs and behind guided_.
_KINDS = {"json": JSON_SCHEMA, "regex": REGEX, "choice": CHOICE, "grammar": LARK}


def grammar_of(request: GenerationRequest) -> Grammar | None:
    """What the answer must be like; None if the request leaves that open.

    Raises:
        ApiError: 400 for more than one form, or one that is not understood. Whether it can be followed, an engine says.
    """
    found = list(_found(request))
    if len(found) > 1:
        raise bad_request(
            f"{found[1].param}: an answer has one form, and {found[0].param} says one, too", found[1].param
        )
    return found[0] if found else None


def _found(request: GenerationRequest) -> Iterator[Grammar]:
    if request.response_format is not None and (of_format := _of_format(request.response_format)) is not None:
        yield of_format
    for name, value in (request.structured_outputs or {}).items():
        if value is None or value is False:
            continue
        where = f"structured_outputs.{name}"
        if name == "json_object" and value is True:
            yield Grammar(JSON_SCHEMA, ANY_OBJECT, where)
        elif name in _KINDS:
            yield _of_kind(name, value, where)
        else:
            raise bad_request(
                f"{where}: must be left out; there are json, json_object, regex, choice and grammar", where,
                "unsupported_parameter",
            )  # fmt: skip
    for name in _KINDS:
        where = f"guided_{name}"
        if (value := getattr(request, where)) is not None:
            yield _of_kind(name, value, where)


def _of_format(value: dict[str, Any]) -> Grammar | None:
    kind = value.get("type")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if kind not in ("text", "json_object", "json_schema"):
        raise _wrong("response_format.type", f"must be {_FORMAT_TYPES}, got {shown(kind)}")
    for name in value:
        if name not in known and value[name] is not None:
            raise bad_request(f"response_format.{name}: unknown field", f"response_format.{name}", "unknown_parameter")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar(JSON_SCHEMA, ANY_OBJECT, "response_format")
    where, inner = "response_format.json_schema", value.get("json_schema")
    if not isinstance(inner, dict):
        raise _wrong(where, f"must be an object with name and schema, got {shown(inner)}")
    for name in inner:
        if name not in _SCHEMA_FIELDS:
            raise bad_request(f"{where}.{name}: unknown field", f"{where}.{name}", "unknown_parameter")
    schema = inner.get("schema")
    if schema is None:
        return Grammar(JSON_SCHEMA, ANY_OBJECT, "response_format")
    return _of_kind("json", schema, f"{where}.schema")


def _of_kind(name: str, value: Any, where: str) -> Grammar:
    if name == "json":
        if not isinstance(value, (dict, str)):
            raise _wrong(where, f"must be a JSON schema, got {shown(value)}")
    elif name == "choice":
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            raise _wrong(where, f"must be a list of at least one string, got {shown(value)}")
    elif not (isinstance(value, str) and value):
        raise _wrong(where, f"must be a string of at least one character, got {shown(value)}")
    return Grammar(_KINDS[name], value if isinstance(value, str) else _json_text(value, where), where)


def _json_text(value: Any, where: str) -> str:
    """In the order in which it came, which is that of an answer's properties; no more of it than a grammar may have."""
    parts, length = [], 0
    try:
        for part in json.JSONEncoder(separators=(",", ":")).iterencode(value):
            parts.append(part)
            length += len(part)
            if length > MAX_GRAMMAR_CHARS:
                raise _wrong(where, f"must have at most {MAX_GRAMMAR_CHARS} characters")
    except RecursionError:
        raise _wrong(where, "must not be nested so deep") from None
    return "".join(parts)


def _wrong(where: str, what: str) -> ApiError:
    return bad_request(f"{where}: {what}", where)


def structured_outputs(grammar: Grammar) -> dict[str, Any]:
    """A grammar as a request says it."""
    name = next(name for name, kind in _KINDS.items() if kind == grammar.kind)
    return {name: json.loads(grammar.text) if grammar.kind == CHOICE else grammar.text}
