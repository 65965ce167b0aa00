"""One thread's way between the host's memory and the device's, for large copies: on the CPU, where both are one."""

from __future__ import annotations

import ctypes

import numpy as np


class HostLane:
    """A buffer of the host, and copies between it and the device.

    Args:
        num_bytes: of the largest copy.

    Attributes:
        buffer: uint8 [num_bytes].
    """

    def __init__(self, num_bytes: int) -> None:
        self.buffer = np.empty(num_bytes, np.uint8)

    def enter(self) -> None:
        """The calling thread makes the copies that follow."""

    def send(self, address: int, num_bytes: int) -> None:
        """Copy the buffer's beginning to the device; done when this returns."""
        ctypes.memmove(address, self.buffer.ctypes.data, num_bytes)

    def fetch(self, address: int, num_bytes: int) -> None:
        """Copy from the device to the buffer's beginning; done when this returns."""
        ctypes.memmove(self.buffer.ctypes.data, address, num_bytes)

    def close(self) -> None:
        """Give everything back; no copy follows."""
