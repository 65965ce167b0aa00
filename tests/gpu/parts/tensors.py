"""Arrays on their way to the GPU and back, without Paddle's own kernels: NumPy in, NumPy out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle

from gpu_ops.slots.share_inputs import ShareInputs
from tests.gpu_ops.slots.random_slots import arrays

HALVES = ("bfloat16", "float16")
# Relative error that rounding the result to the type explains, with room for the inputs' own rounding inside.
TOLERANCE = {"bfloat16": 8e-3, "float16": 1e-3}


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values that the type can hold."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return (rounded.astype(np.uint32) << 16).view(np.float32).reshape(values.shape)


def gpu(values: np.ndarray, dtype: str | None = None) -> paddle.Tensor:
    """A GPU tensor; `dtype` is given for floats that become float16 or bfloat16."""
    if dtype == "float16":
        values = values.astype(np.float16)
    elif dtype == "bfloat16":
        # Paddle reads uint16 as bfloat16.
        values = (round_to(values, dtype).view(np.uint32) >> 16).astype(np.uint16)
    return paddle.to_tensor(np.ascontiguousarray(values), place=paddle.CUDAPlace(0))


def host(tensor: paddle.Tensor) -> np.ndarray:
    """The values as NumPy has them, bfloat16 as float32."""
    values = tensor.numpy()
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def pinned(values: np.ndarray) -> paddle.Tensor:
    """A tensor in pinned host memory."""
    return paddle.to_tensor(np.ascontiguousarray(values), place=paddle.CUDAPinnedPlace())


def poison(megabytes: int = 8) -> None:
    """Leave NaN (or, as integers, nonsense) in memory that the next outputs are likely to get."""
    for size in (1 << 10, 1 << 14, megabytes << 20):
        paddle.to_tensor(np.full(size // 2, 0x7FF1, np.uint16), place=paddle.CUDAPlace(0))


def state_on_gpu(state: SimpleNamespace) -> ShareInputs:
    """A twin state as GPU tensors, not_need_stop pinned as the engine has it."""
    tensors = {name: gpu(value) for name, value in arrays(state).items()}
    tensors["not_need_stop"] = pinned(state.not_need_stop)
    return ShareInputs(**tensors, block_size=state.block_size)


def relative_error(result: np.ndarray, expected: np.ndarray, usual_size: float = 0.0) -> float:
    """|result - expected| / |expected|; NaN where something was not written.

    Args:
        usual_size: of an element: a few may lie close to zero by chance, where their own size says nothing.
    """
    expected = expected.astype(np.float64)
    least = max(usual_size * expected.size**0.5, 1e-30)
    return float(np.linalg.norm(result - expected) / max(np.linalg.norm(expected), least))
