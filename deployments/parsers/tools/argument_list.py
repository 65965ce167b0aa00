"""Arguments that are written one by one, as text, put together to a JSON object."""

from __future__ import annotations

import json
from typing import Any

from deployments.parsers.scanning.call_writer import MOST_READ_AGAIN, CallWriter
from deployments.parsers.scanning.events import CallArguments
from deployments.parsers.scanning.scanner import Malformed, Scanner, Steps, goes_on, raw_value, skip_space, until

# Of each function, its parameters' schemas by name.
Functions = dict[str, dict[str, Any]]
# Of values that may have an end in them.
_BEGINS_LONG = ("{", "[", '"')


class ArgumentList:
    """The arguments of one call.

    Args:
        parameters: their schemas by name, which tell texts from numbers: to the model they look the same.
    """

    def __init__(self, calls: CallWriter, parameters: dict[str, Any]) -> None:
        self._calls = calls
        self._parameters = parameters
        self._count = 0

    def read(self, scan: Scanner, name: str, ends: list[str]) -> Steps[None]:
        """The value of ``name``, up to and with one of ``ends``. A text goes out as it comes.

        Raises:
            Malformed: the text ends in it.
        """
        yield self._calls.arguments(("{" if not self._count else ", ") + json.dumps(name, ensure_ascii=False) + ": ")
        self._count += 1
        if is_text(self._parameters.get(name)):
            yield self._calls.arguments('"')
            found = bool((yield from until(scan, ends, self._escaped, keeps_cut=False)))
            if found:
                yield self._calls.arguments('"')
        else:
            text = yield from self._json_up_to(scan, ends)
            found = text is not None
            if text is None:
                pieces: list[str] = []
                found = bool((yield from until(scan, ends, pieces.append)))
                text = _as_json("".join(pieces))
            if found:
                yield self._calls.arguments(text)
        if not found:
            raise Malformed

    def _json_up_to(self, scan: Scanner, ends: list[str]) -> Steps[str | None]:
        """A JSON value and one of ``ends`` right behind it, which may also stand in its strings; None, and nothing passed, if
        something else comes."""
        if self._calls.read_again > MOST_READ_AGAIN:
            return None
        scan.keep()
        try:
            if (yield from skip_space(scan)) in _BEGINS_LONG:
                text = yield from raw_value(scan)
                yield from skip_space(scan)
                if (yield from goes_on(scan, ends)) and _is_json(text):
                    scan.forget()
                    return text
        except Malformed:
            pass
        self._calls.read_again += scan.rewind()
        return None

    def end(self) -> CallArguments:
        """What closes the object."""
        return self._calls.arguments("}" if self._count else "{}")

    def _escaped(self, text: str) -> CallArguments:
        return self._calls.arguments(json.dumps(text, ensure_ascii=False)[1:-1])


def is_text(schema: Any) -> bool:
    """Whether a value is written as it is, and not as JSON: what nobody has described, and what can be nothing else."""
    if not isinstance(schema, dict) or schema.get("type") == "string":
        return True
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return "type" not in schema and isinstance(values, list) and all(isinstance(value, str) for value in values)


def _as_json(text: str) -> str:
    """``text`` if it is JSON, else as a JSON string."""
    stripped = text.strip()
    if _is_json(stripped):
        return stripped
    words = {"True": "true", "False": "false", "None": "null"}
    return words.get(stripped) or json.dumps(text, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)
