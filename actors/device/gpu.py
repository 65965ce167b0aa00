"""The GPU as the engine's device: work is enqueued at once by the thread that launches a step, and nobody waits for it.

Paddle's own kernels are never needed here: tensors come from NumPy or are left uninitialised, everything else is an op of
``gpu_ops``. A Paddle build without device code for the present GPU does not say so; its kernels leave garbage.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.device.gpu_clock import GpuClock, check, elapsed_seconds
from actors.device.gpu_lane import GpuLane
from actors.device.host_tensor import HostBuffer
from gpu_ops.build import cuda_compiler_version
from gpu_ops.host_flag import copy_async

logger = logging.getLogger("bireme.engine")

# The address of a cell names its CUDA event for as long as the process lives, so a cell's memory is never given back.
_event_cells: list[paddle.Tensor] = []


def has_gpu() -> bool:
    """Paddle was built with CUDA and sees a GPU."""
    return bool(paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count())


def _cublas_lt_version() -> int:
    """Of the library that the matmuls load; 0 if it has none of the names that they try."""
    for name in ("libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        return library.cublasLtGetVersion()
    return 0


class GpuStream:
    """Paddle's computing stream of the GPU: what is given to it is enqueued before ``run`` returns."""

    def __init__(self) -> None:
        self._entered = threading.local()

    def run(self, work: Callable[[], None]) -> None:
        """Enqueue ``work``; it must not raise."""
        if not hasattr(self._entered, "done"):
            paddle.set_device("gpu:0")  # belongs to a thread, as gradient mode does
            # The first call of the runtime makes the device's context the thread's own; the driver's events need one.
            paddle.device.cuda.synchronize()
            self._entered.done = True
        with paddle.no_grad():
            work()

    def synchronize(self) -> None:
        """Wait until everything enqueued so far has run."""
        paddle.device.cuda.synchronize()

    def close(self) -> None:
        """Wait for what is enqueued."""
        self.synchronize()


class GpuTimer:
    """Time of one step on the device, between two CUDA events with timing (the driver's: Paddle 2.6 has none)."""

    def __init__(self, device: GpuDevice) -> None:
        self._device = device
        self._driver = driver = device.quick_driver
        self._begin, self._finish = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (self._begin, self._finish):
            check(driver.cuEventCreate(ctypes.byref(event), 0), "cuEventCreate")
        self._stream: ctypes.c_void_p | None = None
        self.start = self.end = 0.0

    def reset(self) -> None:
        self.start = 0.0

    def mark_start(self) -> None:
        if self._stream is None:
            self._stream = ctypes.c_void_p(paddle.device.cuda.current_stream().cuda_stream)
        check(self._driver.cuEventRecord(self._begin, self._stream), "cuEventRecord")

    def mark_end(self) -> None:
        check(self._driver.cuEventRecord(self._finish, self._stream), "cuEventRecord")

    def finish(self) -> None:
        """After the step's end was waited for: ``end - start`` is the time on the device, ``end`` is now or, with aligned
        clocks, when the device was done.
        """
        elapsed, clock = elapsed_seconds(self._driver, self._begin, self._finish), self._device.clock
        self.end = time.perf_counter() if clock is None else clock.seconds(self._finish)
        self.start = self.end - elapsed


class GpuDevice(CpuDevice):
    """One GPU, the first that this process sees.

    Args:
        dtype: bfloat16 or float16.
        batch_invariant: a row's bits must not depend on the other rows.
    """

    is_gpu = True
    other_dtypes = ()
    item_bytes = 2

    def __init__(self, dtype: str = "bfloat16", batch_invariant: bool = False) -> None:
        paddle.set_device("gpu:0")
        self.dtype = self.kv_cache_dtype = dtype
        self.batch_invariant = batch_invariant
        self.place = paddle.CUDAPlace(0)
        self.name = paddle.device.cuda.get_device_name()
        self.driver = ctypes.CDLL("libcuda.so.1")
        # For calls that are over before another thread would have had the interpreter lock, which they keep: who gives it up
        # in the middle of a step waits for it behind whatever the actor's event loop does.
        self.quick_driver = ctypes.PyDLL("libcuda.so.1")
        self.math_version = f"cuBLASLt {_cublas_lt_version()}, {cuda_compiler_version()}"
        self.clock: GpuClock | None = None
        self._packed: paddle.Tensor | None = None
        self._input: paddle.Tensor | None = None
        answer = float(paddle.full([1], 7.0).numpy()[0])
        if answer == 7.0:
            logger.info("%s: Paddle's own kernels run", self.name)
        else:
            logger.warning(
                "%s: Paddle's own kernels do not run (a fill with 7 reads %s); the engine needs none", self.name, answer
            )

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU, as the driver counts them once Paddle has given back what it caches."""
        paddle.device.cuda.empty_cache()
        return self._memory_info()

    def free_bytes(self) -> int:
        """Bytes that the driver still has, what Paddle caches not among them. The thread must have the device's context."""
        return self._memory_info()[0]

    def _memory_info(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        check(self.driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
        return free.value, total.value

    def make_stream(self) -> GpuStream:
        return GpuStream()

    def make_timer(self) -> GpuTimer:
        return GpuTimer(self)

    def align_clock(self) -> None:
        self.free_clock()
        paddle.device.cuda.synchronize()
        self.clock = GpuClock(self.driver, ctypes.c_void_p(paddle.device.cuda.current_stream().cuda_stream))

    def free_clock(self) -> None:
        if self.clock is not None:
            self.clock.close()
            self.clock = None

    def make_lane(self, num_bytes: int) -> GpuLane:
        return GpuLane(self.driver, num_bytes)

    def host_buffer(self, shape: list[int], dtype: str) -> HostBuffer:
        return HostBuffer(shape, dtype, place=paddle.CUDAPinnedPlace())

    def event_cell(self) -> paddle.Tensor:
        _event_cells.append(self.host_buffer([1], "int64").tensor)
        return _event_cells[-1]

    def progress_cell(self) -> None:
        """The host cannot look into a GPU's step."""

    def packed_outputs(self, landing: HostBuffer) -> paddle.Tensor:
        """One block on the GPU for all steps: the copy of a step's outputs comes before the next step on the stream."""
        if self._packed is None or self._packed.shape != landing.tensor.shape:
            self._packed = self.tensor(np.zeros(landing.tensor.shape, np.int64))
        return self._packed

    def input_block(self, staged: HostBuffer) -> paddle.Tensor:
        """One block on the GPU for all steps: the copy of a step's input comes after the step before on the stream."""
        if self._input is None or self._input.shape != staged.tensor.shape:
            self._input = self.tensor(np.zeros(staged.tensor.shape, np.int32))
        return self._input

    def kv_cache(self, shape: list[int]) -> paddle.Tensor:
        # Uninitialised: attention reads no position that was not written.
        return paddle.empty(shape, self.dtype)

    def copy_of(self, tensor: paddle.Tensor) -> paddle.Tensor:
        copy = paddle.empty(tensor.shape, tensor.dtype)
        copy_async(copy, tensor)
        return copy

    def num_rows(self, num_tokens: int, num_samples: int, counts: paddle.Tensor) -> tuple[int, int]:
        """The host's prediction, never too low: padding rows carry slot -1, and looking would mean waiting."""
        return num_tokens, num_samples
