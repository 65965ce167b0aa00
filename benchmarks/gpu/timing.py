"""Times of GPU work, most of it replayed from CUDA graphs, and the peaks that it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import paddle
from paddle.device.cuda.graphs import CUDAGraph

from benchmarks.gpu.random_model import DTYPE_BYTES, RandomBits, upload
from gpu_ops import forward as ops


def replay_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of `work`, which enqueues and does not wait: batches of it, each as long as makes the clock exact."""
    work()
    paddle.device.cuda.synchronize()
    calls, times = 1, []
    while len(times) < rounds:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        paddle.device.cuda.synchronize()
        seconds = time.perf_counter() - start
        # A synchronisation costs about 10 us.
        if seconds < 2e-3:
            calls *= 2
        else:
            times.append(seconds / calls)
    return float(np.median(times))


def graph_seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """Median seconds of one replay of `work` captured in a graph. Short work repeats inside: a replay costs the host 10 us."""
    work()
    paddle.device.cuda.synchronize()
    graph = CUDAGraph()
    graph.capture_begin()
    keep = work()
    graph.capture_end()
    seconds = replay_seconds(graph.replay, rounds)
    del keep
    return seconds


def repeated_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Seconds of one of many calls of `work` in one graph."""
    return graph_seconds(lambda: [work() for _ in range(repeats)]) / repeats


@dataclass
class Peaks:
    """Device copy in bytes read plus written a second, matmul in FLOP a second."""

    copy: float = 0.0
    matmul: float = 0.0

    @staticmethod
    def measure(bits: RandomBits) -> Peaks:
        # Rows in their own order: a plain copy kernel, which is faster than the driver's copy.
        rows, width = 1 << 16, 1 << 13
        table, ids = upload(bits(rows, width)), upload(np.arange(rows))
        copy = graph_seconds(lambda: ops.embedding(table, ids, rows))
        size = rows * width * DTYPE_BYTES
        n = 8192
        a, b = upload(bits(n, n)), upload(bits(n, n))
        matmul = graph_seconds(lambda: ops.linear(a, b, n))
        return Peaks(2 * size / copy, 2 * n**3 / matmul)


@dataclass
class Table:
    """Lines that are printed at the end, together."""

    peaks: Peaks
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, seconds: float, num_bytes: float, flops: float = 0.0) -> None:
        """A kernel with the bytes and operations it cannot avoid."""
        line = f"{name:44s} {seconds * 1e6:9.1f} us {num_bytes / seconds / 1e9:8.0f} GB/s"
        line += f" {num_bytes / seconds / self.peaks.copy:5.0%}"
        if flops:
            line += f" {flops / seconds / 1e12:7.1f} TFLOP/s {flops / seconds / self.peaks.matmul:5.0%}"
        self.lines.append(line)
        print(line, flush=True)

    def note(self, line: str) -> None:
        """Any other figure."""
        self.lines.append(line)
        print(line, flush=True)
