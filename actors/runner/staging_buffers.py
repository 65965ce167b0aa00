"""Host memory for a step's inputs whose sizes differ from step to step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.device.host_tensor import HostBuffer

_LARGEST_KEPT_BYTES = 1 << 18
_MAX_KEPT_BYTES = 8 << 20


class StagingBuffers:
    """One step's, which hold its inputs until it was saved. They are kept by shape: to pin memory anew for each array takes
    longer than a small model's kernel. Large ones are rare, and not kept."""

    def __init__(self, device: CpuDevice) -> None:
        self._device = device
        self._kept: OrderedDict[tuple, HostBuffer] = OrderedDict()
        self._kept_bytes = 0
        self._held: list[HostBuffer] = []

    def stage(self, name: str, array: np.ndarray) -> paddle.Tensor:
        """A copy that the device reads, until ``release``.

        Args:
            name: of the input; each is staged once a step.
        """
        key = name, array.shape
        buffer = self._kept.get(key) or self._device.host_buffer(list(array.shape), array.dtype.name)
        if array.nbytes <= _LARGEST_KEPT_BYTES:
            self._keep(key, buffer)
        buffer.array[...] = array
        self._held.append(buffer)
        return buffer.tensor

    def _keep(self, key: tuple, buffer: HostBuffer) -> None:
        if key not in self._kept:
            self._kept[key] = buffer
            self._kept_bytes += buffer.array.nbytes
        self._kept.move_to_end(key)
        while self._kept_bytes > _MAX_KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.array.nbytes

    def release(self) -> Iterator[np.ndarray]:
        """The step was saved or dropped. Yields the memory of what it held."""
        held, self._held = self._held, []
        return (buffer.array for buffer in held)
