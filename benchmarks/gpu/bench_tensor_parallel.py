"""What a sum over two GPUs costs inside a CUDA graph, and whether it can be captured there at all.

    python -m benchmarks.gpu.bench_tensor_parallel [--hidden 4096] [--rows 1 8 64 256]

Two processes, one GPU each. A chain of matmuls is captured into a graph, and the same chain with an all-reduce of its
[rows, hidden] bfloat16 result after each; the difference of their replay times is what an all-reduce costs between kernels,
as it would stand after the attention and after the feed-forward of each layer. Two ways to ask for it, each in processes of
its own, so that one which hangs or fails does not take the other along:

| way | what is captured |
|---|---|
| paddle | ``paddle.distributed.stream.all_reduce(..., use_calc_stream=True)`` |
| nccl | ``ncclAllReduce`` of the library itself, on Paddle's computing stream |
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAYS = ("paddle", "nccl")
CHAIN = 64  # all-reduces in a graph: two a layer of 32 layers
_NCCL_BFLOAT16, _NCCL_SUM = 9, 0
_NCCL_ID_BYTES = 128


class Driver:
    """CUDA events with timing, through the driver; Paddle 2.6 has none."""

    def __init__(self) -> None:
        import paddle

        self._cuda = ctypes.CDLL("libcuda.so.1")
        self.stream = ctypes.c_void_p(paddle.device.cuda.current_stream().cuda_stream)
        self._events = [ctypes.c_void_p() for _ in range(2)]
        for event in self._events:
            self._call("cuEventCreate", ctypes.byref(event), 0)

    def microseconds(self, work: Callable[[], None]) -> float:
        """Time on the device of what ``work`` enqueues."""
        import paddle

        elapsed = ctypes.c_float()
        self._call("cuEventRecord", self._events[0], self.stream)
        work()
        self._call("cuEventRecord", self._events[1], self.stream)
        paddle.device.cuda.synchronize()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), *self._events)
        return elapsed.value * 1e3

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} failed with CUDA driver error {code}")


def paddle_all_reduce(rank: int, folder: Path) -> Callable[[Any], None]:
    """Paddle's collective on the computing stream."""
    import paddle.distributed as dist

    dist.init_parallel_env()
    return lambda tensor: dist.stream.all_reduce(tensor, use_calc_stream=True)


def nccl_all_reduce(rank: int, folder: Path) -> Callable[[Any], None]:
    """NCCL's own function; its unique id travels through a file."""
    import paddle

    nccl = ctypes.CDLL("libnccl.so.2")
    nccl.ncclGetErrorString.restype = ctypes.c_char_p

    class UniqueId(ctypes.Structure):
        _fields_ = [("internal", ctypes.c_char * _NCCL_ID_BYTES)]

    def checked(code: int, what: str) -> None:
        if code:
            raise RuntimeError(f"{what}: {nccl.ncclGetErrorString(code).decode()} ({code})")

    unique, file = UniqueId(), folder / "nccl-id"
    if rank == 0:
        checked(nccl.ncclGetUniqueId(ctypes.byref(unique)), "ncclGetUniqueId")
        partial = file.with_suffix(".partial")
        partial.write_bytes(bytes(unique))
        partial.rename(file)
    else:
        while not file.exists():
            time.sleep(0.01)
        ctypes.memmove(ctypes.byref(unique), file.read_bytes(), _NCCL_ID_BYTES)
    communicator = ctypes.c_void_p()
    nccl.ncclCommInitRank.argtypes = [ctypes.c_void_p, ctypes.c_int, UniqueId, ctypes.c_int]
    checked(nccl.ncclCommInitRank(ctypes.byref(communicator), 2, unique, rank), "ncclCommInitRank")
    version = ctypes.c_int()
    checked(nccl.ncclGetVersion(ctypes.byref(version)), "ncclGetVersion")
    print(f"rank {rank}: NCCL {version.value}", file=sys.stderr)
    stream = ctypes.c_void_p(paddle.device.cuda.current_stream().cuda_stream)

    def all_reduce(tensor: Any) -> None:
        address = ctypes.c_void_p(tensor.data_ptr())
        count = ctypes.c_size_t(tensor.shape[0] * tensor.shape[1])
        code = nccl.ncclAllReduce(address, address, count, _NCCL_BFLOAT16, _NCCL_SUM, communicator, stream)
        checked(code, "ncclAllReduce")

    return all_reduce


def capture(work: Callable[[], None]) -> Any:
    """A CUDA graph of what ``work`` enqueues."""
    from paddle.device.cuda.graphs import CUDAGraph

    graph = CUDAGraph()
    graph.capture_begin()
    work()
    graph.capture_end()
    return graph


def bf16(values: Any) -> Any:
    """A GPU tensor of values that bfloat16 can hold."""
    import numpy as np
    import paddle

    bits = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return paddle.to_tensor(bits, place=paddle.CUDAPlace(0))


def measure(rank: int, rows: int, hidden: int, all_reduce: Callable[[Any], None], repeats: int) -> dict[str, Any]:
    """Times in microseconds for one number of rows; raises where capture or result is wrong."""
    import numpy as np
    import paddle

    driver = Driver()
    ones = np.ones((rows, hidden), np.float32)
    summed = bf16(ones * (rank + 1))
    all_reduce(summed)
    paddle.device.cuda.synchronize()
    once = capture(lambda: all_reduce(summed))
    once.replay()
    paddle.device.cuda.synchronize()
    found = (summed.numpy().astype(np.uint32) << 16).view(np.float32)
    # 1 + 2 eagerly, then the two threes by the graph.
    if not (found == 6).all():
        raise RuntimeError(f"a replayed all-reduce of 1 and 2, twice, gave {np.unique(found)[:8]} instead of 6")

    weight, x = bf16(np.zeros((hidden, hidden))), bf16(ones)
    held = []

    def chain(reduce: bool) -> None:
        y = x
        for _ in range(CHAIN):
            y = paddle.matmul(y, weight)
            if reduce:
                all_reduce(y)
            held.append(y)  # memory of a captured tensor must not be given to the next one while others write it

    def alone() -> None:
        for _ in range(CHAIN):
            all_reduce(summed)

    works = {"matmuls": lambda: chain(False), "both": lambda: chain(True), "all_reduces": alone}
    graphs = {}
    for name, work in works.items():
        work()
        paddle.device.cuda.synchronize()
        graphs[name] = capture(work)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(repeats):
        for name, graph in graphs.items():  # in turns, so that a disturbance hits all
            times[name].append(driver.microseconds(graph.replay) / CHAIN)
    eager = statistics.median(driver.microseconds(alone) for _ in range(10)) / CHAIN
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "rows": rows,
        "kilobytes": rows * hidden * 2 / 1024,
        "in_graph": statistics.median(b - a for a, b in zip(times["matmuls"], times["both"])),
        "in_graph_alone": medians["all_reduces"],
        "matmul": medians["matmuls"],
        "eager": eager,
    }


def worker(options: argparse.Namespace) -> None:
    """One rank of one way; rank 0 prints a line of JSON for each number of rows."""
    import paddle

    paddle.set_device("gpu:0")
    paddle.device.cuda.synchronize()
    setup = paddle_all_reduce if options.way == "paddle" else nccl_all_reduce
    with paddle.no_grad():
        all_reduce = setup(options.rank, Path(options.folder))
        for rows in options.rows:
            found = measure(options.rank, rows, options.hidden, all_reduce, options.repeats)
            if options.rank == 0:
                print(json.dumps(found), flush=True)
    # NCCL and captured graphs are torn down by the end of the process, in whatever order the driver likes best.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(way: str, options: argparse.Namespace) -> bool:
    """Both ranks of one way; prints its table, or the last lines of what went wrong."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ranks = []
        for rank in range(2):
            environment = {
                **os.environ, "CUDA_VISIBLE_DEVICES": str(rank), "FLAGS_selected_gpus": "0", "NCCL_NVLS_ENABLE": "0",
                "PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank], "PADDLE_MASTER": endpoints[0],
            }  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.gpu.bench_tensor_parallel", "--way", way, "--rank", str(rank),
                       "--folder", folder, "--hidden", str(options.hidden), "--repeats", str(options.repeats),
                       "--rows", *map(str, options.rows)]  # fmt: skip
            log = stack.enter_context(Path(folder, f"{rank}.log").open("w+"))
            ranks.append(
                (subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True), log)
            )
        deadline = time.monotonic() + options.timeout
        ended_badly = ""
        while any(process.poll() is None for process, _ in ranks):
            if time.monotonic() > deadline:
                ended_badly = f"no end within {options.timeout} s"
            elif any(process.returncode for process, _ in ranks):
                ended_badly = "a rank failed"
                time.sleep(1)  # for the other one's own words
            if ended_badly:
                for process, _ in ranks:
                    process.kill()
            time.sleep(0.05)
        failed = bool(ended_badly) or any(process.returncode for process, _ in ranks)
        assert ranks[0][0].stdout is not None
        print_table(way, [json.loads(line) for line in ranks[0][0].stdout if line.startswith("{")])
        for rank, (_, log) in enumerate(ranks):
            log.seek(0)
            lines = [line.rstrip()[:300] for line in log if line.strip()]
            for line in lines[-12:] if failed else [line for line in lines if "NCCL" in line][:2]:
                print(f"  {way}, rank {rank}: {line}")
        if failed:
            print(f"{way}: {ended_badly or 'a rank failed'}")
        return not failed


def print_table(way: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"{way:7s} {row['rows']:4d} rows {row['kilobytes']:7.0f} KB: {row['in_graph']:6.2f} us between matmuls in a graph, "
            f"{row['in_graph_alone']:6.2f} us back to back in a graph, {row['eager']:6.2f} us back to back op by op "
            f"(a matmul of the chain: {row['matmul']:6.2f} us)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--repeats", type=int, default=60, help="replays of each graph")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each way")
    parser.add_argument("--way", choices=WAYS, help="run one way alone")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        try:
            worker(options)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    results = [run(way, options) for way in ([options.way] if options.way else WAYS)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
