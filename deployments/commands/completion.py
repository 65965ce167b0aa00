"""What a shell offers behind ``bireme serve`` and its like: models, files, settings and their values."""

from __future__ import annotations

import glob
import os
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from actors.model_files.kept import kept_models
from cluster.config import DEFAULT_MODEL, Autoscaling, LLMConfig
from cluster.errors import BiremeError
from deployments.start.serve_config import named_configs
from deployments.start.vllm_names import ALIASES, NUM_REPLICAS, SEVERAL

_INNER = tuple(f"autoscaling.{name}" for name in Autoscaling.model_fields)
_FILES = (".yaml", ".yml", ".gguf")


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Models that are here, by name."""
    return [name for name in _model_names() if name.startswith(incomplete)]


def complete_settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """What is served, if nothing is yet; settings, NAME=VALUE."""
    words = ctx.params.get("settings") or []
    name, typed = _name_before(incomplete)
    if name:
        values = [value for value in _values(name) if value.startswith(typed)]
        # A shell that parts words at = replaces what is behind it.
        return [f"{name}={value}" for value in values] if "=" in incomplete else values
    if words and (flag := _flag_with_value(words[-1])):
        return complete_value(flag, incomplete)
    typed_name = incomplete.replace("-", "_")
    names = [setting for setting in (*LLMConfig.model_fields, NUM_REPLICAS) if setting.startswith(typed_name)]
    if "." in typed_name:
        names = [setting for setting in _INNER if setting.startswith(typed_name)]
    if len(names) == 1:
        offered = [f"{names[0]}={value}" for value in _values(names[0])] or [f"{names[0]}="]
    else:
        offered = [f"{setting}=" for setting in names]
    if not any("=" not in word and not word.startswith("-") for word in words):
        offered = [*[one for one in _served() if one.startswith(incomplete)], *_files(incomplete), *offered]
    return offered


def complete_value(name: str, incomplete: str) -> list[str]:
    """Values of the setting ``name``, behind its option."""
    return [value for value in _values(name) if value.startswith(incomplete)]


@dataclass
class _Item:
    """What typer's shells read of an offer."""

    value: str
    type: str = "plain"
    help: str | None = None


class SettingsCommand(TyperCommand):
    """A command whose options are all settings and vLLM's names for them, though its help shows the common ones.

    vLLM's options that are refused or change nothing here are taken from scripts, and offered to nobody.
    """

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        items = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("--"):
            return items
        shown = {one.value for one in items}
        names = {*LLMConfig.model_fields, *ALIASES, *SEVERAL}
        switches = {f"no_{name}" for name in names if _is_switch(name)}
        flags = [f"--{name.replace('_', '-')}" for name in sorted(names | switches)]
        more = [flag for flag in flags if flag.startswith(incomplete) and flag not in shown]
        return [*items, *map(_Item, more)]


def _name_before(incomplete: str) -> tuple[str, str]:
    """The setting whose value is typed, and as much of it as there is; no name where a name is typed."""
    if "=" in incomplete:
        name, _, typed = incomplete.partition("=")
        return name.replace("-", "_"), typed
    # Bash parts words at =, and says where among them it is.
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    if at.isdigit() and 2 <= int(at) < len(words):
        here, before = words[int(at)], words[: int(at)]
        if here == "=":
            return before[-1].lstrip("-").replace("-", "_"), ""
        if before[-1] == "=":
            return before[-2].lstrip("-").replace("-", "_"), incomplete
    return "", ""


def _flag_with_value(word: str) -> str:
    """The setting that ``word`` is the option of, if its value comes next."""
    name = word.removeprefix("--").replace("-", "_")
    return name if word.startswith("--") and "=" not in word and not _is_switch(name) and _field(name) else ""


def _is_switch(name: str) -> bool:
    field = _field(name)
    return field is not None and field.annotation is bool


def _field(name: str) -> FieldInfo | None:
    mapping, _, inner = name.partition(".")
    if mapping == "autoscaling" and inner:
        return Autoscaling.model_fields.get(inner)
    return LLMConfig.model_fields.get(ALIASES.get(name, name))


def _values(name: str) -> list[str]:
    """Words that a setting may be; else its default; none where it has neither."""
    field = _field(name)
    if field is None:
        return []
    words = sorted(_words(field.annotation))
    if words or isinstance(field.default, bool) or not isinstance(field.default, (int, float, str)):
        return words
    return [str(field.default)]


def _words(annotation: Any) -> set[str]:
    if annotation is bool:
        return {"true", "false"}
    origin = get_origin(annotation)
    if origin is Literal:
        return {str(value) for value in get_args(annotation)}
    if origin is Annotated:
        return _words(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(_words, get_args(annotation)))
    return set()


def _served() -> list[str]:
    return [*named_configs(), *_model_names()]


def _model_names() -> list[str]:
    try:
        kept = [model.name for model in kept_models()]
    except (BiremeError, OSError):
        kept = []
    return list(dict.fromkeys([DEFAULT_MODEL, *(name for name in kept if name != "ready-weights")]))


def _files(incomplete: str) -> list[str]:
    """Files that can be served, and folders on the way to them."""
    if incomplete.startswith("-"):
        return []
    found = sorted(glob.glob(glob.escape(incomplete) + "*"))
    return [
        path + "/" if Path(path).is_dir() else path for path in found if Path(path).is_dir() or path.endswith(_FILES)
    ]
