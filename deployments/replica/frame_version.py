"""Which form of frames a process speaks: both ends of a token socket are of one code, or they do not use it.

The version follows from what travels, so that nobody has to remember to raise it: the fields of every class, in their order and
with their types and defaults. Code that means another thing by the same fields raises ``_MEANING``.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
import zlib
from typing import Any

_MEANING = 1


def frame_version(*kinds: Any) -> int:
    """Of frames in which values of these types travel; equal in every process of one code."""
    lines: dict[str, str] = {}
    names = [_described(kind, lines) for kind in kinds]
    text = "\n".join([str(_MEANING), *names, *sorted(lines.values())])
    return zlib.crc32(text.encode())


def _described(kind: Any, lines: dict[str, str]) -> str:
    """How ``kind`` is written; the classes in it get a line each in ``lines``."""
    if arguments := typing.get_args(kind):
        inner = ", ".join(_described(argument, lines) for argument in arguments)
        return f"{_name(typing.get_origin(kind))}[{inner}]"
    defaults = _defaults(kind)
    if defaults is not None and (name := _name(kind)) not in lines:
        lines[name] = ""  # it may be among its own fields
        fields = typing.get_type_hints(kind)
        told = [f"{field}: {_described(fields[field], lines)} = {default}" for field, default in defaults.items()]
        lines[name] = f"{name}({'; '.join(told)})"
    return _name(kind)


def _defaults(kind: Any) -> dict[str, str] | None:
    """Of each field in its order; None for what has none, as numbers and texts."""
    if dataclasses.is_dataclass(kind):
        return {field.name: _default(field) for field in dataclasses.fields(kind)}
    if isinstance(kind, type) and issubclass(kind, tuple) and typing.get_type_hints(kind):
        return {field.name: _given(field.default) for field in inspect.signature(kind).parameters.values()}
    return None


def _given(default: Any) -> str:
    return "" if default is inspect.Parameter.empty else repr(default)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if field.default is dataclasses.MISSING else repr(field.default)


def _name(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or repr(kind)
