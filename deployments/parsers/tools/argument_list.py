"""Arguments that are written one by one, as text, put together to a JSON object."""

from __future__ import annotations

import json
from typing import Any

from deployments.parsers.scanning.call_writer import CallWriter
from deployments.parsers.scanning.events import CallArguments
from deployments.parsers.scanning.scanner import Malformed, Scanner, Steps, until

# Of each function, its parameters' schemas by name.
Functions = dict[str, dict[str, Any]]


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
        if self._is_text(name):
            yield self._calls.arguments('"')
            found = yield from until(scan, ends, self._escaped)
            if found:
                yield self._calls.arguments('"')
        else:
            pieces: list[str] = []
            found = yield from until(scan, ends, pieces.append)
            if found:
                yield self._calls.arguments(_as_json("".join(pieces)))
        if not found:
            raise Malformed

    def end(self) -> CallArguments:
        """What closes the object."""
        return self._calls.arguments("}" if self._count else "{}")

    def _escaped(self, text: str) -> CallArguments:
        return self._calls.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def _is_text(self, name: str) -> bool:
        schema = self._parameters.get(name)
        # What nobody has described is text, as is what can be nothing else.
        return not isinstance(schema, dict) or schema.get("type") == "string"


def _as_json(text: str) -> str:
    """``text`` if it is JSON, else as a JSON string."""
    stripped = text.strip()
    try:
        json.loads(stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):
        words = {"True": "true", "False": "false", "None": "null"}
        return words.get(stripped) or json.dumps(text, ensure_ascii=False)
    return stripped


def _refuse(constant: str) -> None:
    raise ValueError(constant)
