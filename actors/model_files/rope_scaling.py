"""How model files write the scaling of rotary frequencies, turned into one form."""

from __future__ import annotations

import math
from typing import Any

from actors.layers.rope import RopeScaling
from cluster.errors import ModelLoadError

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")


def normalise_rope_scaling(raw: dict[str, Any], max_positions: int, where: object) -> tuple[RopeScaling, int]:
    """Turn a Hugging Face rope_scaling or rope_parameters object into a RopeScaling and the context length it allows.

    Dynamic scaling changes frequencies only beyond max_positions; a table that every sequence shares cannot, so the context
    ends there and the scaling is none.

    Raises:
        ModelLoadError: unknown kind, or a needed value is missing or not positive.
    """
    kind = raw.get("rope_type", raw.get("type")) or "default"
    if kind not in SCALINGS:
        raise ModelLoadError(
            f"{where}: rope scaling {kind!r} is not supported; supported: {', '.join(SCALINGS)}.", "model"
        )
    if kind in ("default", "dynamic"):
        return RopeScaling(), max_positions

    def number(name: str, default: float | None = None) -> float:
        value = raw.get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or not value > 0:
            raise ModelLoadError(
                f"{where}: {kind} rope scaling has {name} = {value!r}; it must be a number above 0.", "model"
            )
        return float(value)

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


def _yarn_attention_factor(raw: dict[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if raw.get("attention_factor") is not None:
        return float(raw["attention_factor"])
    if raw.get("mscale") and raw.get("mscale_all_dim"):
        return scale(raw["mscale"]) / scale(raw["mscale_all_dim"])
    return scale(1.0)
