"""Host tensors that both Paddle's ops and NumPy see: staging buffers on the way in, landing buffers on the way out."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import Any

import numpy as np
import paddle
from paddle.base import core

_NUMPY_TYPES = {
    paddle.int64: np.int64,
    paddle.int32: np.int32,
    paddle.float32: np.float32,
    paddle.uint8: np.uint8,
    paddle.bool: np.bool_,
}

_SMALL_PAGES_BYTES = 2 << 20


def host_view(tensor: paddle.Tensor) -> np.ndarray:
    """NumPy array over the memory of a contiguous host tensor. The tensor must outlive it.

    Slice assignment to a Paddle tensor from Python may copy, and moves a pinned tensor to the GPU; a view does neither.
    """
    dtype = np.dtype(_NUMPY_TYPES[tensor.dtype])
    count = int(np.prod(tensor.shape))
    address = ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_char * (count * dtype.itemsize)))
    return np.frombuffer(memoryview(address.contents), dtype=dtype).reshape(tensor.shape)


def tensor_over(array: np.ndarray) -> paddle.Tensor:
    """A host tensor over the memory of a contiguous, writable array, without a copy; it keeps the array alive."""
    # Not from_dlpack, which copies in Paddle 2.6.
    return core.eager.Tensor(
        value=array, place=core.CPUPlace(), persistable=False, zero_copy=True, name=None, stop_gradient=True
    )


def zero_pages(shape: list[int], dtype: str = "float32") -> paddle.Tensor:
    """Zeros of float32, bfloat16 or int8 whose memory the system gives page by page at first touch, rather than all of it now.

    Pages are huge where the system has such, but for the first 2 MiB: an engine has one of these arrays for each layer's keys and
    values, its start touches the beginning of each, and where memory is in pieces the system takes milliseconds for a huge page.
    """
    in_numpy = np.dtype(np.int16 if dtype == "bfloat16" else dtype)  # which has no bfloat16
    num_bytes = in_numpy.itemsize * int(np.prod(shape))
    pages = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and num_bytes > _SMALL_PAGES_BYTES:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE, _SMALL_PAGES_BYTES)
    zeros = tensor_over(np.frombuffer(pages, in_numpy, int(np.prod(shape))).reshape(shape))
    return zeros.view(dtype) if dtype == "bfloat16" else zeros


def fill_with_poison(array: np.ndarray) -> None:
    """Overwrite all bytes with 0xA5: as an integer large and negative, so whoever still reads it goes visibly wrong."""
    array.reshape(-1).view(np.uint8)[:] = 0xA5


class HostBuffer:
    """A host tensor of fixed shape with its NumPy view; ``place`` may be pinned memory."""

    def __init__(self, shape: list[int], dtype: str, place: Any = None) -> None:
        place = paddle.CPUPlace() if place is None else place
        self.tensor = paddle.to_tensor(np.zeros(shape, dtype), place=place)
        self.array = host_view(self.tensor)
