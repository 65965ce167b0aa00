"""Arguments of the application builder as they arrive from a command line: text, and errors for a person."""

from __future__ import annotations

from typing import Any

import click
from pydantic import ValidationError, model_validator

from cluster.config import UNKNOWN_SETTING, LLMConfig
from cluster.errors import BiremeError
from cluster.wording import setting_name
from deployments.start.ray_llm_config import is_ray_llm_config, settings_of
from deployments.start.settings_names import OTHER_WAYS, instead_of, is_nested
from deployments.start.text_values import decoded, short_number
from deployments.start.vllm_names import NO_VALUES


def _of_type(kind: type) -> frozenset[str]:
    return frozenset(name for name, field in LLMConfig.model_fields.items() if field.annotation in (kind, kind | None))


_TEXTS, _WHOLE_NUMBERS = _of_type(str), _of_type(int)


class SettingsError(click.ClickException):
    """Settings that are not valid. ``serve run`` prints an error of this kind as one line instead of a traceback."""


class AppArguments(LLMConfig):
    """``LLMConfig`` that also takes its values as text: ``max_num_seqs=8``, ``max_model_len=8k``,
    ``deployment_config={"num_replicas": 2}``; and a configuration of Ray Serve LLM in their place.

    Ray Serve writes an application's arguments into logs that others may read, and shows them to whoever asks: there are no keys
    among them.
    """

    @model_validator(mode="before")
    @classmethod
    def _decode_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if is_ray_llm_config(values):
            try:
                values = settings_of(values)
            except BiremeError as error:
                raise ValueError(error.message) from None
        return _nested({name: _value(name, value) for name, value in values.items()})

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> AppArguments:
        """Validate what came through Ray Serve; every fault is raised as SettingsError, one line a setting."""
        if hold_keys(obj):
            raise SettingsError(
                "api_keys: Ray Serve logs and shows the arguments of an application, so these keys are none any more; "
                f"make new ones and {OTHER_WAYS}"
            )
        return cls.with_keys(obj, **options)

    @classmethod
    def with_keys(cls, obj: Any, **options: Any) -> AppArguments:
        """As ``model_validate``, of settings that Ray Serve has not seen yet: api_keys may be among them."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise SettingsError(settings_message(error)) from None


def hold_keys(arguments: Any) -> bool:
    """Whether there are API keys among the arguments of the application."""
    keys = arguments.get("api_keys") if isinstance(arguments, dict) else None
    return bool(decoded(keys) if isinstance(keys, str) else keys)


def _value(name: str, value: Any) -> Any:
    """What a text stands for; one that stands for nothing is left to the field's own validation."""
    if isinstance(value, str) and name not in _TEXTS:
        number = short_number(value) if name in _WHOLE_NUMBERS else None
        value = decoded(value) if number is None else number
    if isinstance(value, (str, int)) and (instead := NO_VALUES.get((name, value))) is not None:
        raise ValueError(f"{name} {value} is not supported: {instead}")
    return value


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with what is called ``mapping.name`` in that mapping, in place of what the mapping itself says of it."""
    found: dict[str, Any] = {}
    for name in sorted(values, key=lambda name: str(name).count(".")):
        value, place = values[name], found
        *within, last = str(name).split(".") if is_nested(str(name)) else [name]
        for part in within:
            inner = place.get(part)
            if inner is None:
                inner = {}
            elif not isinstance(inner, dict):
                raise ValueError(f"{name}: {part} is no mapping, got {inner!r}")
            # Of its own: what was given stays as it was.
            place[part] = dict(inner)
            place = place[part]
        place[last] = value
    return found


def settings_message(error: ValidationError) -> str:
    """Which settings are wrong, and what they may be."""
    lines = []
    for fault in error.errors(include_url=False):
        name, says = setting_name(fault["loc"]), fault["msg"]
        if fault["type"] == UNKNOWN_SETTING:
            instead = instead_of(name)
            lines.append(f"{name} {says}" if instead is None else f"{name} is no setting: {instead}")
        else:
            lines.append(f"{name}: {says}" if name else says)
    return "; ".join(lines)
