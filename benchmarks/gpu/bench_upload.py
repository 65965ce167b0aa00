"""How fast weights come into a device's memory, from the host's and from a file, and out of it.

python -m benchmarks.gpu.bench_upload [--device cpu] [--gib 2] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from actors.device.cpu import CpuDevice
from actors.device.gpu import GpuDevice
from actors.device.large_copies import Upload, fetched, make_fetching_lane
from actors.model_files.ready_weights import read_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--folder", default=None, help="of the file; default: that of temporary files")
    options = parser.parse_args()
    device = GpuDevice() if options.device == "gpu" else CpuDevice()
    size = int(options.gib * 2**30) // 4096 * 4096
    data = np.arange(size // 8, dtype=np.uint64).view(np.uint8)
    tensor = device.empty([size // device.item_bytes])

    def measure(name: str, work: Callable[[], object]) -> None:
        for turn in ("first", "second"):
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
            print(f"{name}, {turn} time: {seconds:.3f} s, {size / seconds / 1e9:.2f} GB/s", flush=True)

    def from_file(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        with Upload(device) as upload:
            upload.fill(tensor, partial(read_at, descriptor, 0))
            upload.finish()
        os.close(descriptor)

    def from_memory() -> None:
        with Upload(device) as upload:
            upload.joined([data.view(np.float32 if device.item_bytes == 4 else np.uint16)])
            upload.finish()

    def write(path: str) -> None:
        lane = make_fetching_lane(device)
        with open(path, "wb") as file:
            for piece in fetched(tensor, lane):
                file.write(piece.data)
            file.flush()
            os.fsync(file.fileno())
        lane.close()

    print(f"{device.name}: {size / 2**30:.1f} GiB")
    measure("one pageable copy", lambda: device.tensor(data.view(np.uint16)))
    measure("from the host's memory", from_memory)
    with tempfile.NamedTemporaryFile(dir=options.folder) as file:
        measure("to a file on the disk", partial(write, file.name))
        measure("from a file in memory", partial(from_file, file.name))
    lane = make_fetching_lane(device)
    measure("to the host", lambda: [None for _ in fetched(tensor, lane)])


if __name__ == "__main__":
    main()
