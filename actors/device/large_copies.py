"""Many bytes into a device's memory and out of it, in pieces: what is read, unpacked or written on the host goes on meanwhile."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.device.lane import HostLane

# Reads ``buffer.size`` bytes from an offset into a buffer.
Read = Callable[[int, np.ndarray], None]

# Page-locked together: an eighth of a GiB. A thread reads at a few GB/s, the bus takes 50.
_PIECE_BYTES, _MAX_THREADS = 16 << 20, 8
# A step's tokens come over the same bus, and wait for no more than this.
_FETCHED_BYTES = 2 << 20


class Upload:
    """Fills tensors of a device from several threads: each reads a piece and copies it, while others read.

    Left as a context, nothing is on its way any more; the tensors have their content once ``finish`` has returned.
    """

    def __init__(self, device: CpuDevice) -> None:
        self._device = device
        self._num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._lanes: SimpleQueue[HostLane] = SimpleQueue()
        for _ in range(self._num_threads):
            self._lanes.put(device.make_lane(_PIECE_BYTES))
        self._pool = ThreadPoolExecutor(self._num_threads, "upload")
        self._copies: deque[Future[None]] = deque()

    def fill(self, tensor: paddle.Tensor, read: Read, begin: int = 0, end: int | None = None) -> None:
        """Write bytes ``begin`` to ``end`` of a contiguous ``tensor``; all by default.

        Args:
            read: called by other threads; its offsets count from ``begin``.
        Raises:
            Exception: as ``finish``.
        """
        address = tensor.data_ptr() + begin
        size = (self._device.item_bytes * int(np.prod(tensor.shape)) if end is None else end) - begin
        for offset in range(0, size, _PIECE_BYTES):
            while len(self._copies) > 2 * self._num_threads:  # what waits to be read stays little
                self._copies.popleft().result()
            count = min(_PIECE_BYTES, size - offset)
            self._copies.append(self._pool.submit(self._copy, tensor, address + offset, count, offset, read))

    def joined(self, arrays: Sequence[np.ndarray]) -> paddle.Tensor:
        """A tensor of the rows of ``arrays`` one after the other; nobody writes to those until ``finish``."""
        tensor = self._device.empty([sum(len(array) for array in arrays), *arrays[0].shape[1:]])
        begin = 0
        for array in arrays:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.fill(tensor, partial(_read_array, data), begin, begin + data.size)
            begin += data.size
        return tensor

    def finish(self) -> None:
        """Wait for everything.

        Raises:
            Exception: what ``read`` raised.
        """
        while self._copies:
            self._copies.popleft().result()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for _ in range(self._num_threads):
            self._lanes.get().close()

    def _copy(self, tensor: paddle.Tensor, address: int, count: int, offset: int, read: Read) -> None:
        """``tensor`` is here so that its memory lives."""
        lane = self._lanes.get()
        try:
            read(offset, lane.buffer[:count])
            lane.enter()
            lane.send(address, count)
        finally:
            self._lanes.put(lane)


def _read_array(data: np.ndarray, offset: int, into: np.ndarray) -> None:
    into[:] = data[offset : offset + into.size]


def fetched(tensor: paddle.Tensor, lane: HostLane) -> Iterator[np.ndarray]:
    """The bytes of a contiguous tensor in pieces; each is overwritten by the next."""
    address, size = tensor.data_ptr(), tensor.element_size() * int(np.prod(tensor.shape))
    for offset in range(0, size, lane.buffer.size):
        count = min(lane.buffer.size, size - offset)
        lane.fetch(address + offset, count)
        yield lane.buffer[:count]


def make_fetching_lane(device: CpuDevice) -> HostLane:
    """For ``fetched``, beside steps. Made by a thread that has the device's context."""
    return device.make_lane(_FETCHED_BYTES)
