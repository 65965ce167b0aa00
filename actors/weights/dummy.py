"""Random weights for a configuration: for tests and for measuring speed without a download."""

from __future__ import annotations

import hashlib

import numpy as np


def dummy_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return float32 ``shape``, a function of name, shape and seed alone.

    Matrices have variance 1 / fan-in, so that activations keep their size through any number of layers and logits come out
    with a spread of about one; norms are ones and biases small.
    """
    if len(shape) == 1 and name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "little")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
    values *= np.float32(0.02 if len(shape) == 1 else shape[-1] ** -0.5)
    return values
