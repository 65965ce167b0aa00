"""Settings as options of the command line: ``--max-num-seqs 8`` is ``max_num_seqs=8``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cluster.config import LLMConfig
from cluster.terminal.app import errors
from deployments.commands.completion import complete_value
from deployments.start.vllm_names import ALIASES, NUM_REPLICAS, SEVERAL

# All settings may be given so; these are what most people set, which help and completion show.
_SHOWN = (
    "model_id",
    "device",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "num_kv_blocks",
    "kv_cache_dtype",
    "kv_cache_memory_gb",
    "gpu_memory_utilization",
    "tokenizer",
    "tool_call_parser",
    "reasoning_parser",
    "load_format",
    "api_keys_file",
    NUM_REPLICAS,
)
# Other options are left among the arguments, where ``split_settings`` reads them.
TAKES_SETTINGS = {"ignore_unknown_options": True}


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, whose argument ``settings`` also receives what was given in options, as ``--name=value``."""

    @functools.wraps(command)
    def with_flags(**arguments: Any) -> None:
        flags = {name: arguments.pop(f"setting_{name}") for name in _SHOWN}
        given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
        command(**{**arguments, "settings": [*(arguments["settings"] or []), *given]})

    signature = inspect.signature(command, eval_str=True)
    parameters = [*signature.parameters.values(), *map(_parameter, _SHOWN)]
    with_flags.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_flags


def _parameter(name: str) -> inspect.Parameter:
    flag = name.replace("_", "-")
    # What may have several values is left to ``split_settings``, too.
    aliases = [
        f"--{alias.replace('_', '-')}" for alias, ours in ALIASES.items() if ours == name and alias not in SEVERAL
    ]
    field = LLMConfig.model_fields.get(name)
    text = (field.description if field else None) or "How many engines there are; default: 1."
    several = [alias.replace("_", "-") for alias, ours in ALIASES.items() if ours == name and alias in SEVERAL]
    text += "".join(f" Also --{alias} NAME [NAME …], behind the model." for alias in several)

    def values(incomplete: str) -> list[str]:
        return complete_value(name, incomplete)

    option = typer.Option(
        f"--{flag}",
        *aliases,
        help=text,
        metavar="VALUE",
        rich_help_panel="Settings",
        show_default=False,
        autocompletion=values,
    )
    return inspect.Parameter(
        f"setting_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def say_accepted(sentence: str) -> None:
    """Of an option that is accepted, what it means here."""
    errors.print(sentence, style="yellow", highlight=False, markup=False)
