"""How model files write the scaling of rotary frequencies, turned into one form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from actors.layers.rope import RopeScaling
from actors.model_files.unread import ReadKeys
from cluster.errors import ModelLoadError

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")
# What stands beside any kind and means nothing there.
_OF_OTHERS = frozenset(
    {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "finetuned",
        "high_freq_factor",
        "low_freq_factor",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "truncate",
    }
)


def normalise_rope_scaling(raw: Mapping[str, Any], max_positions: int, where: object) -> tuple[RopeScaling, int]:
    """Turn a Hugging Face rope_scaling or rope_parameters object into a RopeScaling and the context length it allows.

    Dynamic scaling changes frequencies only beyond max_positions; a table that every sequence shares cannot, so the context
    ends there and the scaling is none.

    Raises:
        ModelLoadError: unknown kind, a needed value is missing or not positive, or a value that this kind has no use for.
    """
    keys = ReadKeys(raw)
    result = _normalised(keys, max_positions, where)
    # Of other frequencies, other keys, or of no kind at all.
    unused = {key: value for key, value in keys.unread.items() if key not in _OF_OTHERS and value is not None}
    if keys.get("rope_type", keys.get("type")) in (None, "default") and keys.get("factor") not in (None, 1):
        unused["factor"] = keys["factor"]
    if unused:
        key, value = min(unused.items(), key=lambda item: item[0])
        raise ModelLoadError(
            f"{where}: rope scaling of type {keys.get('rope_type', keys.get('type'))!r} has {key} = {value!r}, which is not "
            "supported there.",
            "model",
        )
    return result


def _normalised(raw: Mapping[str, Any], max_positions: int, where: object) -> tuple[RopeScaling, int]:
    kinds = {raw[key] for key in ("rope_type", "type") if raw.get(key) is not None}
    if len(kinds) > 1:
        raise ModelLoadError(
            f"{where}: rope scaling has the types {', '.join(sorted(map(str, kinds)))} at once.", "model"
        )
    kind = kinds.pop() if kinds else "default"
    if kind not in SCALINGS:
        raise ModelLoadError(
            f"{where}: rope scaling {kind!r} is not supported; supported: {', '.join(SCALINGS)}.", "model"
        )
    if kind == "default":
        return RopeScaling(), max_positions

    def number(name: str, default: float | None = None) -> float:
        value = raw.get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or not value > 0:
            raise ModelLoadError(
                f"{where}: {kind} rope scaling has {name} = {value!r}; it must be a number above 0.", "model"
            )
        return float(value)

    if kind == "dynamic":
        return RopeScaling(), min(max_positions, int(number("original_max_position_embeddings", max_positions)))
    factor = number("factor")
    if kind == "linear":
        return RopeScaling("linear", factor), int(max_positions * factor)
    original = int(number("original_max_position_embeddings", max_positions))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if not high > low:
            raise ModelLoadError(
                f"{where}: rope scaling's high_freq_factor ({high}) must be above low_freq_factor ({low}).", "model"
            )
        return RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high), max_positions
    scaling = RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        truncate=bool(raw.get("truncate", True)),
        attention_factor=_yarn_attention_factor(raw, factor),
    )
    return scaling, max(max_positions, int(original * factor))


def _yarn_attention_factor(raw: Mapping[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if raw.get("attention_factor") is not None:
        return float(raw["attention_factor"])
    if raw.get("mscale") and raw.get("mscale_all_dim"):
        return scale(raw["mscale"]) / scale(raw["mscale_all_dim"])
    return scale(1.0)
