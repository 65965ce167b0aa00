"""Rotary position embedding: frequencies, their scaling for long contexts, and the table that the kernels read.

Sources of the scaling rules: position interpolation (arXiv 2306.15595), YaRN (arXiv 2309.00071), Llama 3.1's published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


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


def rope_table(theta: float, head_dim: int, scaling: RopeScaling, max_len: int) -> np.ndarray:
    """Return float32 [max_len, head_dim]: for each position the cosines of all pairs, then the sines.

    Angles are float32 products, as in the reference implementation, so that long positions round the same way.
    """
    frequencies = inverse_frequencies(theta, head_dim, scaling).astype(np.float32)
    angles = np.arange(max_len, dtype=np.float32)[:, None] * frequencies[None, :]
    table = np.concatenate([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))], axis=1)
    return (table * scaling.attention_factor).astype(np.float32)
