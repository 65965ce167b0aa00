"""One thread's way between the host's memory and a GPU's: a page-locked buffer, and a stream that waits for no other."""

from __future__ import annotations

import ctypes

import numpy as np

from actors.device.gpu_clock import check
from actors.device.lane import HostLane

_NON_BLOCKING = 1


class GpuLane(HostLane):
    """Copies go over the bus at its rate, beside the steps. Made by a thread that has the device's context.

    Args:
        driver: the CUDA driver's library.
        num_bytes: of the largest copy.
    """

    def __init__(self, driver: ctypes.CDLL, num_bytes: int) -> None:
        self._driver = driver
        self._context, self._stream, self._memory = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        check(driver.cuCtxGetCurrent(ctypes.byref(self._context)), "cuCtxGetCurrent")
        check(driver.cuStreamCreate(ctypes.byref(self._stream), _NON_BLOCKING), "cuStreamCreate")
        size = ctypes.c_size_t(num_bytes)
        check(driver.cuMemHostAlloc(ctypes.byref(self._memory), size, 0), "cuMemHostAlloc")
        pages = ctypes.cast(self._memory, ctypes.POINTER(ctypes.c_uint8 * num_bytes)).contents
        self.buffer = np.ctypeslib.as_array(pages)

    def enter(self) -> None:
        check(self._driver.cuCtxSetCurrent(self._context), "cuCtxSetCurrent")

    def send(self, address: int, num_bytes: int) -> None:
        source, target, size = self._memory, ctypes.c_uint64(address), ctypes.c_size_t(num_bytes)
        check(self._driver.cuMemcpyHtoDAsync_v2(target, source, size, self._stream), "cuMemcpyHtoDAsync")
        check(self._driver.cuStreamSynchronize(self._stream), "cuStreamSynchronize")

    def fetch(self, address: int, num_bytes: int) -> None:
        target, source, size = self._memory, ctypes.c_uint64(address), ctypes.c_size_t(num_bytes)
        check(self._driver.cuMemcpyDtoHAsync_v2(target, source, size, self._stream), "cuMemcpyDtoHAsync")
        check(self._driver.cuStreamSynchronize(self._stream), "cuStreamSynchronize")

    def close(self) -> None:
        self.buffer = np.empty(0, np.uint8)
        self._driver.cuMemFreeHost(self._memory)
        self._driver.cuStreamDestroy_v2(self._stream)
