"""What this machine can do at best, measured natively: the yardstick of the op benchmark."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

from gpu_ops.build import KERNEL_FLAGS, compiler
from gpu_ops.sources import CSRC


class MachinePeaks:
    """Peak multiply-add rate and memory reading rate, with a given number of threads."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "peaks.so"
            sources = [Path(__file__).with_name("machine_peaks.cc"), CSRC / "kernels/device/thread_pool.cc"]
            command = [compiler(), *KERNEL_FLAGS, "-shared", f"-I{CSRC}", *map(str, sources), "-o", str(library)]
            subprocess.run(command, check=True)
            self._library = ctypes.CDLL(str(library))
        self._library.peak_gflops.restype = ctypes.c_double
        self._library.read_gbytes.restype = ctypes.c_double

    def set_num_threads(self, threads: int) -> None:
        """Threads that measure, the caller included."""
        self._library.set_num_threads(ctypes.c_int(threads))

    def gflops(self) -> float:
        """float32 GFLOP/s from registers."""
        return self._library.peak_gflops()

    def read_gbytes(self, address: int, count: int) -> float:
        """GB/s of one pass over ``count`` floats at ``address``."""
        return self._library.read_gbytes(ctypes.c_void_p(address), ctypes.c_int64(count))
