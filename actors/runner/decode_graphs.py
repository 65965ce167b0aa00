"""CUDA graphs of pure decode steps: one for the forward and one for the postprocess of each batch bucket.

A step of n rows replays the smallest bucket that holds n; surplus rows carry slot -1. Tensors that a graph reads or
writes keep their addresses: the state and the packed rows by design, the hidden states because they are kept here.

Each graph holds the memory of its intermediate results: Paddle 2.6 gives every graph a pool of its own, Paddle 3 lets all
share one. Either way it is measured, and capturing ends where a limit is reached.
"""

from __future__ import annotations

import bisect
import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import paddle

from cluster.cache import Progress

logger = logging.getLogger("bireme.engine")


def decode_buckets(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then in steps of 8 to 64, of 16 to 256, of 64 beyond; the last is ``max_num_seqs``."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(320, 1025, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def capture_order(buckets: list[int]) -> list[int]:
    """The largest, which serves every step, then powers of two, then what refines them: the best set for any limit."""
    largest, *others = sorted(buckets, reverse=True)
    return [largest, *sorted(others, key=lambda rows: (rows & (rows - 1) != 0, -rows))]


class _Bucket(NamedTuple):
    forward: Any
    postprocess: Any
    hidden: paddle.Tensor


class DecodeGraphs:
    """Captures at construction.

    Attributes:
        buckets: numbers of rows that were captured, ascending.
        num_bytes: memory that the graphs took.

    Args:
        buckets: numbers of rows wanted.
        forward: enqueues packing and forward of that many rows and returns the hidden states.
        postprocess: enqueues what follows, up to the packed outputs.
        free_bytes: what the device has left.
        max_bytes: most that graphs may take; a bucket is left out if it probably goes beyond.
        progress: called as ``progress("decode graphs, 64 rows, 101.3 GiB free", done, total)``.
    """

    def __init__(
        self,
        buckets: list[int],
        forward: Callable[[int], paddle.Tensor],
        postprocess: Callable[[int, paddle.Tensor], None],
        free_bytes: Callable[[], int],
        max_bytes: int,
        progress: Progress | None = None,
    ) -> None:
        self.buckets: list[int] = []
        self.num_bytes = 0
        self._captured: dict[int, _Bucket] = {}
        self._pool_id = _shared_pool()
        bytes_a_row = 0.0
        for rows in capture_order(buckets):
            if self.num_bytes + bytes_a_row * rows > max_bytes:
                continue
            # Not captured: the first call of an op with a new shape chooses algorithms and may allocate.
            postprocess(rows, forward(rows))
            paddle.device.cuda.synchronize()
            before = free_bytes()
            bucket = self._capture(rows, forward, postprocess)
            free = free_bytes()
            taken = max(0, before - free)
            if self.num_bytes + taken > max_bytes:
                bucket.forward.reset()
                bucket.postprocess.reset()
                bytes_a_row = max(bytes_a_row, taken / rows)
                continue
            self._captured[rows] = bucket
            self.num_bytes += taken
            bytes_a_row = max(bytes_a_row, taken / rows)
            bisect.insort(self.buckets, rows)
            if progress:
                progress(f"decode graphs, {rows} rows, {free / 2**30:.1f} GiB free", len(self.buckets), len(buckets))
        missing = sorted(set(buckets) - set(self.buckets))
        if missing:
            logger.warning(
                "decode graphs of %s rows were left out: more than decode_graph_memory_gb (%.2f GiB)",
                ", ".join(map(str, missing)),
                max_bytes / 2**30,
            )

    def _capture(
        self, rows: int, forward: Callable[[int], paddle.Tensor], postprocess: Callable[[int, paddle.Tensor], None]
    ) -> _Bucket:
        first, second = _new_graph(self._pool_id), _new_graph(self._pool_id)
        first.capture_begin()
        hidden = forward(rows)
        first.capture_end()
        second.capture_begin()
        postprocess(rows, hidden)
        second.capture_end()
        return _Bucket(first, second, hidden)

    def bucket(self, num_rows: int) -> int | None:
        """The smallest bucket of at least ``num_rows``; None if there is none."""
        at = bisect.bisect_left(self.buckets, num_rows)
        return self.buckets[at] if at < len(self.buckets) else None

    def forward(self, bucket: int) -> paddle.Tensor:
        """Replay packing and forward; the hidden states."""
        self._captured[bucket].forward.replay()
        return self._captured[bucket].hidden

    def postprocess(self, bucket: int) -> None:
        """Replay what follows the forward."""
        self._captured[bucket].postprocess.replay()


def _shared_pool() -> int | None:
    """A pool for all graphs, where Paddle has such a thing. Graphs run one after the other on one stream, and what lives
    from one to the next (hidden states) is kept alive, so that no other graph is given its memory.
    """
    new_pool = getattr(paddle.base.core.CUDAGraph, "gen_new_memory_pool_id", None)
    return new_pool() if new_pool is not None and _takes_pool() else None


def _takes_pool() -> bool:
    from paddle.device.cuda.graphs import CUDAGraph

    return "pool_id" in inspect.signature(CUDAGraph.__init__).parameters


def _new_graph(pool_id: int | None) -> Any:
    from paddle.device.cuda.graphs import CUDAGraph

    return CUDAGraph() if pool_id is None else CUDAGraph(pool_id=pool_id)
