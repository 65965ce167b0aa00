"""Random arrays, tensors on the CPU, and what tests of the forward ops say about them."""

from __future__ import annotations

import numpy as np
import paddle

# What Paddle's versions make of a native check that failed.
REFUSED = (RuntimeError, ValueError, OSError)


def tensor(array: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(array, place=paddle.CPUPlace())


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def assert_bits_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))
