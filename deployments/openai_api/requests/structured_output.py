"""What a request says about the form of its answer, in OpenAI's words or vLLM's newer or older ones, as one grammar."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from cluster.api_errors import ApiError, bad_request
from cluster.grammar import ANY_OBJECT, CHOICE, JSON_SCHEMA, LARK, MAX_GRAMMAR_CHARS, REGEX, STRUCTURAL_TAG, Grammar
from deployments.openai_api.requests.answer_forms import ResponseFormat
from deployments.openai_api.requests.protocol import GenerationRequest

# vLLM's names, within structured_outputs and behind guided_.
_KINDS = {"json": JSON_SCHEMA, "regex": REGEX, "choice": CHOICE, "grammar": LARK, "structural_tag": STRUCTURAL_TAG}


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
    spaces = list(_white_space(request))
    if not spaces:
        return found[0] if found else None
    if len(spaces) > 1:
        says = f"{spaces[1].param}: {spaces[0].param} says what white space JSON may have, too"
        raise bad_request(says, spaces[1].param)
    if not found or found[0].kind != JSON_SCHEMA:
        forms = "response_format, structured_outputs.json or guided_json"
        raise _wrong(spaces[0].param, f"is only allowed where the answer is JSON, by {forms}")
    return dataclasses.replace(found[0], white_space=spaces[0])


def _white_space(request: GenerationRequest) -> Iterator[Grammar]:
    if (outputs := request.structured_outputs) is not None:
        if outputs.whitespace_pattern is not None:
            yield Grammar(REGEX, outputs.whitespace_pattern, "structured_outputs.whitespace_pattern")
        if outputs.disable_any_whitespace:
            yield Grammar(REGEX, "", "structured_outputs.disable_any_whitespace")
    if request.guided_whitespace_pattern is not None:
        yield Grammar(REGEX, request.guided_whitespace_pattern, "guided_whitespace_pattern")


def _found(request: GenerationRequest) -> Iterator[Grammar]:
    if request.response_format is not None and (of_format := _of_format(request.response_format)) is not None:
        yield of_format
    if (outputs := request.structured_outputs) is not None:
        if outputs.json_object:
            yield Grammar(JSON_SCHEMA, ANY_OBJECT, "structured_outputs.json_object")
        values = {"json": outputs.json_, "regex": outputs.regex, "choice": outputs.choice, "grammar": outputs.grammar}
        yield from _of_kinds(values, "structured_outputs.")
        if outputs.structural_tag is not None:
            yield _of_kind("structural_tag", outputs.structural_tag, "structured_outputs.structural_tag")
    guided = ("json", "regex", "choice", "grammar")
    yield from _of_kinds({name: getattr(request, f"guided_{name}") for name in guided}, "guided_")


def _of_format(value: ResponseFormat) -> Grammar | None:
    if value.type == "text":
        return None
    if value.type == "structural_tag":
        named = {"format": value.format, "structures": value.structures, "triggers": value.triggers}
        return _of_kind("structural_tag", {k: v for k, v in named.items() if v is not None}, "response_format")
    if value.json_schema is None or value.json_schema.schema_ is None:
        return Grammar(JSON_SCHEMA, ANY_OBJECT, "response_format")
    return _of_kind("json", value.json_schema.schema_, "response_format.json_schema.schema")


def _of_kinds(values: dict[str, Any], prefix: str) -> Iterator[Grammar]:
    for name, value in values.items():
        if value is not None:
            yield _of_kind(name, value, prefix + name)


def _of_kind(name: str, value: Any, where: str) -> Grammar:
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
    said: dict[str, Any] = {name: json.loads(grammar.text) if grammar.kind == CHOICE else grammar.text}
    if grammar.white_space is not None:
        said["whitespace_pattern"] = grammar.white_space.text
    return said
