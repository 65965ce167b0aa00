"""Where the engine computes. What differs between the CPU and a GPU in loading a model and running a step is here and in
``actors.device.gpu``; the runner, the decoder and the step's buffers ask their device and know no place themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from actors.device.host_tensor import HostBuffer, tensor_over, zero_pages
from actors.device.lane import HostLane
from actors.device.stream import CpuStream


class CpuTimer:
    """Stamps of one step, taken by the thread that computes it."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    def reset(self) -> None:
        self.start = 0.0

    def mark_start(self) -> None:
        self.start = time.perf_counter()

    def mark_end(self) -> None:
        self.end = time.perf_counter()

    def finish(self) -> None:
        """The host has seen the step's end."""


class CpuDevice:
    """The processor: float32, a worker thread as the stream, and buffers that the host and the stream share.

    Args:
        kv_cache_dtype: one of ``gpu_ops.kv_cache.CPU_TYPES``.
    Attributes:
        is_gpu: ops run on a GPU.
        dtype: what is computed in, and the type of weights.
        kv_cache_dtype: type of what the KV cache stores.
        item_bytes: of one number of that type.
        other_dtypes: of weights that keep a file's format.
        math_version: of what makes the ops' bits besides their sources; on the CPU nothing does.
        batch_invariant: ops are asked for results that do not depend on the other rows; on the CPU they never do.
    """

    is_gpu = False
    dtype = "float32"
    item_bytes = 4
    other_dtypes: tuple[str, ...] = ("uint8",)
    batch_invariant = False
    name = "cpu"
    math_version = ""

    def __init__(self, kv_cache_dtype: str = "float32") -> None:
        self.kv_cache_dtype = kv_cache_dtype
        self.place: Any = paddle.CPUPlace()
        if paddle.is_compiled_with_cuda():
            paddle.set_device("cpu")

    def make_stream(self) -> Any:
        """The queue that a runner's work goes to."""
        return CpuStream()

    def make_timer(self) -> Any:
        """What takes a step's time on the device."""
        return CpuTimer()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of what weights and KV cache are taken from."""
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total

    def free_bytes(self) -> int:
        """As the first of ``memory``, from any thread and cheap enough to ask once a second."""
        return self.memory()[0]

    def align_clock(self) -> None:
        """On the stream: from now on ``start`` and ``end`` of a step lie on the host's clock. Here they always do."""

    def free_clock(self) -> None:
        """Undo ``align_clock``, for as long as nobody compares the two clocks."""

    def tensor(self, array: np.ndarray) -> paddle.Tensor:
        """A copy of ``array`` that ops compute with; uint16 becomes bfloat16."""
        return paddle.to_tensor(array, place=self.place)

    def joined(self, arrays: Sequence[np.ndarray]) -> paddle.Tensor:
        """As ``tensor``, of the rows of ``arrays`` one after the other."""
        return self.tensor(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])

    def mapped_tensor(self, array: np.ndarray) -> paddle.Tensor:
        """``array`` itself as what ops compute with; it is writable, and nobody writes to it."""
        return tensor_over(array)

    def empty(self, shape: list[int]) -> paddle.Tensor:
        """A weight that is yet to be written."""
        return paddle.empty(shape, self.dtype)

    def make_lane(self, num_bytes: int) -> HostLane:
        """A thread's way to the device's memory, for copies of up to ``num_bytes``."""
        return HostLane(num_bytes)

    def host_buffer(self, shape: list[int], dtype: str) -> HostBuffer:
        """Zeros that the host writes and the device reads, or the other way round."""
        return HostBuffer(shape, dtype)

    def event_cell(self) -> paddle.Tensor:
        """An int64 [1] cell for ``event_record`` and ``event_wait``."""
        return HostBuffer([1], "int64").tensor

    def progress_cell(self) -> HostBuffer | None:
        """An int64 [1] cell in which a forward counts its layers, for the host to look at; None where the host cannot see it."""
        return self.host_buffer([1], "int64")

    def packed_outputs(self, landing: HostBuffer) -> paddle.Tensor:
        """Where a step packs its outputs before they land: here the landing buffer itself."""
        return landing.tensor

    def input_block(self, staged: HostBuffer) -> paddle.Tensor:
        """Where a step's ops read what the host has staged, at an address that is the same for all steps where a graph has it:
        here the staging buffer itself."""
        return staged.tensor

    def kv_cache(self, shape: list[int]) -> paddle.Tensor:
        """One layer's keys or values."""
        return zero_pages(shape, self.kv_cache_dtype)

    def copy_of(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """A tensor of the same values."""
        return tensor.clone()

    def num_rows(self, num_tokens: int, num_samples: int, counts: paddle.Tensor) -> tuple[int, int]:
        """(rows, sampling rows) to launch where the host predicts so many; int32 [2] ``counts`` is what ``pack_tokens`` wrote.

        On the CPU the stream may look: a slot that stopped one step ago costs nothing.
        """
        rows, samples = counts.numpy().tolist()
        return rows, samples
