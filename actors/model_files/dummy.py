"""Random weights for a configuration: for tests and for measuring speed without a download.

Drawing eight billion numbers takes a minute of a large machine. So every tensor is cut from one buffer of normal numbers,
beginning at a place of its own, and goes round it where it is longer: that costs a copy.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from actors.model_files.formats.number_types import convert

# A prime: however long the rows of a matrix, no two of its first four million begin at the same place of the buffer.
_BUFFER_LENGTH = 4_194_301


def dummy_tensor(name: str, shape: tuple[int, ...], seed: int, dtype: str = "float32") -> np.ndarray:
    """Return a tensor of ``shape``, a function of name, shape and seed alone; bfloat16 comes as uint16 bit patterns.

    Matrices have variance 1 / fan-in, so that activations keep their size through any number of layers and logits come out
    with a spread of about one; norms are ones and biases small.
    """
    if len(shape) == 1 and name.endswith("norm.weight"):
        return convert(np.ones(shape, np.float32), dtype)
    scale = 0.02 if len(shape) == 1 else shape[-1] ** -0.5
    buffer = _scaled_buffer(seed, scale, dtype)
    start = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "little") % _BUFFER_LENGTH
    tensor = np.empty(shape, buffer.dtype)
    flat, done = tensor.reshape(-1), 0
    while done < flat.size:
        count = min(flat.size - done, _BUFFER_LENGTH - start)
        flat[done : done + count] = buffer[start : start + count]
        done, start = done + count, 0
    return tensor


@functools.lru_cache(maxsize=2)
def _buffer(seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=seed)).standard_normal(_BUFFER_LENGTH, dtype=np.float32)


# A model's matrices have two or three numbers of inputs.
@functools.lru_cache(maxsize=8)
def _scaled_buffer(seed: int, scale: float, dtype: str) -> np.ndarray:
    return convert(_buffer(seed) * np.float32(scale), dtype)
