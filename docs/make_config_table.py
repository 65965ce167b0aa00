"""Write the configuration table of docs/configure.md from ``cluster.config.LLMConfig``, so that the two cannot differ.

``python docs/make_config_table.py`` rewrites the part of that page between the two markers.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.config import LLMConfig  # noqa: E402 (the script runs without an installed package)
from docs.marked_part import with_part  # noqa: E402

PAGE = ROOT / "docs" / "configure.md"
START = "<!-- config table: written by docs/make_config_table.py -->"
END = "<!-- end of config table -->"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def type_text(annotation: Any) -> str:
    """A type for a reader: ``int``, ``auto, cpu or gpu``, ``list of str``; None is left to the default's column."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        values = [str(value) for value in arguments]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(type_text(argument) for argument in arguments if argument is not type(None))
    if get_origin(annotation) is list:
        return f"list of {type_text(arguments[0])}"
    if get_origin(annotation) is dict or issubclass(annotation, BaseModel):
        return "mapping"
    return annotation.__name__


def number_text(value: float) -> str:
    """Powers of two as such, because that is how they were chosen."""
    if isinstance(value, int) and value >= 2**20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def values_text(field: FieldInfo) -> str:
    """Type and bounds of a setting."""
    bounds = [
        f"{sign} {number_text(getattr(limit, name))}"
        for limit in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([type_text(field.annotation), *bounds])


def default_text(field: FieldInfo) -> str:
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def config_table() -> str:
    """The table in Markdown, one row a setting, in the order of the class."""
    return "\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *rows_of(LLMConfig)])


def rows_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A row a setting; those in a mapping follow it."""
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{prefix}{name}` | {values_text(field)} | {default_text(field)} | {meaning} |"
        for inner in get_args(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from rows_of(inner, f"{prefix}{name}.")


def with_table(page: str) -> str:
    """``page`` with the part between the markers replaced by the present table."""
    return with_part(page, START, END, config_table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
