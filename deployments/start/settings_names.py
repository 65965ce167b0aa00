"""Names of settings as a person types them: with dashes, by the names that vLLM has for them, or slightly wrong."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel

from cluster import wording
from cluster.config import Autoscaling, LLMConfig
from cluster.errors import BiremeError
from deployments.start.text_values import decoded
from deployments.start.vllm_names import (
    ALIASES,
    ELSEWHERE,
    MEANS_NOTHING,
    NUM_REPLICAS,
    SEVERAL,
    SHORT,
    VALUES,
    is_same,
    is_switch,
)

OTHER_WAYS = "name a file that holds them in api_keys_file, or set BIREME_API_KEY where Ray is started"
_KEYS_ELSEWHERE = f"every user of this machine can read a command line; {OTHER_WAYS}"

# Of the commands that take settings, beside these.
_OPTIONS = ("host", "port", "address", "verbose", "help", "gpu_gib")

# Settings that are mappings, and what describes the names in them, where that is not Ray Serve's to say.
MAPPINGS: Mapping[str, type[BaseModel] | None] = MappingProxyType(
    {"autoscaling": Autoscaling, "deployment_config": None, "ingress_config": None}
)

Say = Callable[[str], object]


def split_settings(items: Sequence[str], say: Say = str) -> tuple[list[str], dict[str, str]]:
    """What was typed, as words that are no settings, and settings under our names.

    Args:
        items: words, ``name=value``, ``--name=value``, ``--name value``; ``--switch`` and ``--no-switch`` of what is on or off;
            ``--served-model-name a b``, behind the model.
        say: is given a sentence for each option of vLLM that is accepted and changes nothing here.

    Raises:
        BiremeError: as ``setting``, or a value is missing.
    """
    words: list[str] = []
    settings: dict[str, str] = {}
    rest = deque(items)
    while rest:
        item = rest.popleft()
        if re.fullmatch(r"-O\d", item):
            rest.appendleft(item[2:])
            item = "-O"
        name, equals, value = item.partition("=")
        if not item.startswith("-"):
            # A path may have the sign, too.
            if not equals or (not words and os.path.exists(item)):
                words.append(item)
                continue
        elif not equals:
            name, value = _switched(item)
            if value:
                if rest and rest[0].lower() in ("true", "false"):
                    value = _opposite(value) if rest.popleft().lower() == "false" else value
            else:
                check_name(name)  # an unknown one is said to be so, whatever follows
                if not rest or rest[0].startswith("--"):
                    raise BiremeError(f"{item} needs a value")
                value = rest.popleft()
        ours, value = setting(name, value, say)
        if ours:
            settings[ours] = value
        if not equals and (of_more := SEVERAL.get(_plain(name))) is not None and (more := _more_values(rest, words)):
            settings[of_more] = json.dumps(more)
    return words, settings


def _more_values(rest: deque[str], words: list[str]) -> list[str]:
    """Values that follow the first one, taken from ``rest``. Before a model has been named, the next word may be one."""
    more = []
    while words and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        more.append(rest.popleft())
    return more


def _switched(item: str) -> tuple[str, str]:
    """A switch and its value; the name and nothing if it is none."""
    name = _plain(item)
    for switch, value in ((name, "true"), (name.removeprefix("no_"), "false")):
        field = LLMConfig.model_fields.get(ALIASES.get(switch, switch))
        if is_switch(switch) or (field is not None and field.annotation is bool):
            return item if value == "true" else f"--{item.lstrip('-')[3:]}", value
    return item, ""


def _opposite(value: str) -> str:
    return "false" if value == "true" else "true"


def _plain(name: str) -> str:
    plain = name.lstrip("-").replace("-", "_")
    # vLLM's --compilation-config.mode is an item of --compilation-config.
    plain, dot, item = plain.partition(".")
    plain = SHORT.get(plain, plain) if name.startswith("-") and not name.startswith("--") else plain
    return plain if plain in ELSEWHERE or plain in MEANS_NOTHING else plain + dot + item


def is_nested(name: str) -> bool:
    """Whether ``name`` is of something in a setting that is a mapping: ``autoscaling.max_replicas``."""
    return "." in name and name.partition(".")[0] in MAPPINGS


def names_within(setting: str) -> list[str]:
    """What may stand in ``setting``, with its name before it; nothing where Ray Serve says what may."""
    inner = MAPPINGS.get(setting)
    return [f"{setting}.{name}" for name in inner.model_fields] if inner is not None else []


def known_names() -> list[str]:
    """Every setting that a command line may name."""
    inner = [name for setting in MAPPINGS for name in names_within(setting)]
    return sorted({*LLMConfig.model_fields, NUM_REPLICAS, *inner} - {"api_keys"})


def nearest(name: str, candidates: Iterable[str]) -> str:
    """``; did you mean X?`` or nothing."""
    found = wording.nearest(name, candidates)
    return f"; did you mean {found}?" if found else ""


def _nearest_as_typed(name: str) -> str:
    """As ``nearest``, with dashes where ``name`` was typed with them."""
    is_flag = name.startswith("-")
    known = [*known_names(), *ALIASES, *ELSEWHERE, *MEANS_NOTHING, *(_OPTIONS if is_flag else ())]
    if not is_flag:
        return nearest(_plain(name), known)
    found = wording.nearest(_plain(name), known)
    return f"; did you mean --{found.replace('_', '-')}?" if found else ""


def check_name(name: str) -> str:
    """What ``name``, as it was typed, is called here, or by vLLM where it is nothing here.

    Raises:
        BiremeError: nobody knows it, or it is one that no command line may have.
    """
    plain = _plain(name)
    ours = ALIASES.get(plain, plain)
    if ours in ("api_key", "api_keys"):
        raise BiremeError(f"{name}: {_KEYS_ELSEWHERE}", "api_keys")
    of_ray_serve = is_nested(ours) and MAPPINGS[ours.partition(".")[0]] is None
    if not of_ray_serve and ours not in known_names() and ours not in ELSEWHERE and ours not in MEANS_NOTHING:
        hint = _nearest_as_typed(name) or "; docs/configure.md has them all"
        raise BiremeError(f"unknown setting {name}{hint}", ours)
    return ours


def setting(name: str, value: str, say: Say = str) -> tuple[str, str]:
    """Our name and value of a setting as it was typed; no name if it is vLLM's and changes nothing here.

    Raises:
        BiremeError: as ``check_name``; or it is not supported: one sentence that says what is.
    """
    ours = check_name(name)
    if ours in MEANS_NOTHING:
        say(f"{name} changes nothing here: {MEANS_NOTHING[ours]}")
        return "", ""
    if ours in ELSEWHERE:
        # An item of a mapping is never what is so of the whole.
        if "." in name or not is_same(ELSEWHERE[ours], decoded(value)):
            raise BiremeError(f"{name} is not supported: {ELSEWHERE[ours].instead}", ours)
        say(f"{name} {value} changes nothing here: {ELSEWHERE[ours].instead}")
        return "", ""
    if (ours, value) in VALUES:
        say(f"{name} {value} is {ours}={VALUES[ours, value]} here")
    return ours, VALUES.get((ours, value), value)


def instead_of(name: str) -> str | None:
    """Why a name of vLLM's is no setting, or what it is called here; None if it is not known."""
    if name in ALIASES and ALIASES[name] in LLMConfig.model_fields:
        return f"it is {ALIASES[name]} here"
    if name in ELSEWHERE:
        return ELSEWHERE[name].instead
    return f"leave it out: {MEANS_NOTHING[name]}" if name in MEANS_NOTHING else None
