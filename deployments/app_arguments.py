"""Arguments of the application builder as they arrive from a command line: text, and errors for a person."""

from __future__ import annotations

import json
from typing import Any

import click
from pydantic import ValidationError, model_validator

from cluster.config import LLMConfig

_TEXT_FIELDS = frozenset({"model", "model_id", "tokenizer", "accelerator_type"})


class SettingsError(click.ClickException):
    """Settings that are not valid. ``serve run`` prints an error of this kind as one line instead of a traceback."""


class AppArguments(LLMConfig):
    """``LLMConfig`` that also takes its values as text: ``max_num_seqs=8``, ``deployment_config={"num_replicas": 2}``."""

    @model_validator(mode="before")
    @classmethod
    def _decode_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: _decoded(value) if name not in _TEXT_FIELDS else value for name, value in values.items()}

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> AppArguments:
        """Validate; every fault is raised as SettingsError, one line a setting."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise SettingsError(settings_message(error)) from None


def _decoded(value: Any) -> Any:
    """The JSON value that a text stands for; a text that stands for none is left to the field's own validation."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except ValueError:
        return value


def settings_message(error: ValidationError) -> str:
    """Which settings are wrong, and what they may be."""
    lines = []
    for fault in error.errors(include_url=False):
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name}; allowed: {', '.join(sorted(LLMConfig.model_fields))}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            shown = f", got {fault['input']!r}" if name and fault["type"] != "value_error" else ""
            lines.append(f"{name}: {message}{shown}" if name else message)
    return "; ".join(lines)
