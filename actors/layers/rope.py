"""Rotary position embedding: frequencies, their scaling for long contexts, and the table that the kernels read.

Sources of the scaling rules: position interpolation (arXiv 2306.15595), YaRN (arXiv 2309.00071), Llama 3.1's published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cluster.errors import ModelLoadError

if TYPE_CHECKING:
    from actors.model_files.config import ModelConfig

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies differ from theta ** (-2i/d).

    Attributes:
        kind: 'none'; 'linear' (all divided by factor); 'llama3' and 'yarn' (long waves divided by factor, short ones kept, a
            ramp between); 'divisors' (each frequency divided by its own number, as GGUF files store llama3 scaling).
        original_max_positions: context length of pre-training, to which waves are compared.
        attention_factor: cos and sin are multiplied by it (yarn; 1 otherwise).
    """

    kind: Literal["none", "linear", "llama3", "yarn", "divisors"] = "none"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    divisors: tuple[float, ...] = ()


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


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling) -> np.ndarray:
    """Return the angle per position of each pair of dimensions: float64 [head_dim / 2]."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "divisors":
        return frequencies / np.asarray(scaling.divisors, np.float64)
    if scaling.kind == "llama3":
        waves_in_context = scaling.original_max_positions * frequencies / (2 * math.pi)
        kept = (waves_in_context - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return _mix(frequencies, scaling.factor, kept)
    if scaling.kind == "yarn":
        return _mix(frequencies, scaling.factor, _yarn_kept(theta, head_dim, scaling))
    return frequencies


def _mix(frequencies: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * kept + frequencies / factor * (1.0 - kept)


def _yarn_kept(theta: float, head_dim: int, scaling: RopeScaling) -> np.ndarray:
    """Share of each frequency that stays unscaled: 1 for short waves, 0 for long ones, a ramp over the dimensions between."""

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    return 1.0 - np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)


def rope_table(config: ModelConfig, max_len: int) -> np.ndarray:
    """Return float32 [max_len, head_dim]: for each position the cosines of all pairs, then the sines.

    Angles are float32 products, as in the reference implementation, so that long positions round the same way.
    """
    frequencies = inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling).astype(np.float32)
    angles = np.arange(max_len, dtype=np.float32)[:, None] * frequencies[None, :]
    table = np.concatenate([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))], axis=1)
    return (table * config.rope_scaling.attention_factor).astype(np.float32)
