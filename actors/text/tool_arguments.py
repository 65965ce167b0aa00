"""The arguments of a tool call in a conversation, as chat templates want them: some write them as an object, others as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ToolArguments(dict):
    """A mapping that is its JSON text wherever a template takes it for text: printed, or joined to a string.

    Args:
        text: the JSON as it came, which a model may have written itself.
    """

    __slots__ = ("_text",)

    def __init__(self, values: Mapping[str, Any], text: str) -> None:
        super().__init__(values)
        self._text = text

    @classmethod
    def read(cls, value: str | Mapping[str, Any]) -> ToolArguments | str:
        """Of an object or its JSON; text that is something else stays text."""
        if isinstance(value, Mapping):
            return cls(value, json.dumps(value, ensure_ascii=False))
        try:
            values = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return value
        return cls(values, (value.strip() and value) or "{}") if isinstance(values, dict) else value

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text
