"""CUDA graphs of pure decode steps: for each batch bucket one of the forward, and one of each kind of sampling.

A step of n rows replays the smallest bucket that holds n; padding rows carry slot -1. Tensors that a graph reads or
writes keep their addresses: the state and the packed rows by design, the hidden states because they are kept here.

Each graph holds the memory of its intermediate results: Paddle 2.6 gives every graph a pool of its own, Paddle 3 lets all
share one. Either way it is measured, and capturing ends where a limit is reached.
"""

from __future__ import annotations

import bisect
import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import paddle

from actors.runner.sampler import SamplingGraph
from cluster.process.cache import Progress

logger = logging.getLogger("bireme.engine")
_T = TypeVar("_T")
PLAIN = SamplingGraph.PLAIN


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
    hidden: paddle.Tensor
    sampling: dict[SamplingGraph, Any]


class DecodeGraphs:
    """Captures at construction: plain steps of every bucket first, then what further kinds of sampling there is room for.

    Attributes:
        buckets: numbers of rows that were captured, ascending.
        num_graphs: graphs that were captured.
        num_bytes: memory that the graphs took.

    Args:
        buckets: numbers of rows wanted.
        forward: enqueues packing and forward of that many rows and returns the hidden states.
        sample: enqueues what follows, up to the packed outputs.
        free_bytes: what the device has left.
        max_bytes: most that graphs may take; a graph is left out if it probably goes beyond.
        progress: called as ``progress("decode graphs, 64 rows, 101.3 GiB free", done, total)``.
    """

    def __init__(
        self,
        buckets: list[int],
        forward: Callable[[int], paddle.Tensor],
        sample: Callable[[int, paddle.Tensor, SamplingGraph], None],
        free_bytes: Callable[[], int],
        max_bytes: int,
        progress: Progress | None = None,
    ) -> None:
        self.buckets: list[int] = []
        self._captured: dict[int, _Bucket] = {}
        self._free_bytes = free_bytes
        self._pool_id = _shared_pool()
        order = capture_order(buckets)
        budget = _Budget(max_bytes)

        def step(rows: int) -> None:
            sample(rows, forward(rows), PLAIN)

        for rows in order:
            plain = functools.partial(self._capture_plain, rows, forward, sample)
            bucket = self._capture_within(budget, rows, functools.partial(step, rows), plain)
            if bucket is None:
                continue
            self._captured[rows] = bucket
            bisect.insort(self.buckets, rows)
            if progress:
                free = free_bytes() / 2**30
                progress(f"decode graphs, {rows} rows, {free:.1f} GiB free", len(self.buckets), len(buckets))
        missing = sorted(set(buckets) - set(self.buckets))
        if missing:
            logger.warning(
                "decode graphs of %s rows were left out: more than decode_graph_memory_gb (%.2f GiB)",
                ", ".join(map(str, missing)),
                max_bytes / 2**30,
            )
        # Steps of a kind and size that has no graph are sampled op by op.
        for kind in [kind for kind in SamplingGraph if kind != PLAIN]:
            budget = _Budget(max_bytes, budget.taken)
            for rows in [rows for rows in order if rows in self._captured]:
                bucket = self._captured[rows]
                enqueue = functools.partial(sample, rows, bucket.hidden, kind)
                graph = self._capture_within(budget, rows, enqueue, functools.partial(self._capture_alone, enqueue))
                if graph is not None:
                    bucket.sampling[kind] = graph
        self.num_bytes = budget.taken
        self.num_graphs = sum(1 + len(bucket.sampling) for bucket in self._captured.values())

    def _capture_within(
        self, budget: _Budget, rows: int, first_call: Callable[[], object], capture: Callable[[], tuple[_T, list[Any]]]
    ) -> _T | None:
        """What is kept of a capture; None if the budget has no room for it.

        Args:
            first_call: not captured: the first call of an op with a new shape chooses algorithms and may allocate.
            capture: returns what is kept, and its graphs.
        """
        if not budget.has_room(rows):
            return None
        first_call()
        paddle.device.cuda.synchronize()
        before = self._free_bytes()
        kept, graphs = capture()
        if budget.take(rows, max(0, before - self._free_bytes())):
            return kept
        for graph in graphs:
            graph.reset()
        return None

    def _capture_plain(
        self,
        rows: int,
        forward: Callable[[int], paddle.Tensor],
        sample: Callable[[int, paddle.Tensor, SamplingGraph], None],
    ) -> tuple[_Bucket, list[Any]]:
        first, hidden = self._capture(lambda: forward(rows))
        second, _ = self._capture(lambda: sample(rows, hidden, PLAIN))
        return _Bucket(first, hidden, {PLAIN: second}), [first, second]

    def _capture_alone(self, work: Callable[[], object]) -> tuple[Any, list[Any]]:
        graph, _ = self._capture(work)
        return graph, [graph]

    def _capture(self, work: Callable[[], _T]) -> tuple[Any, _T]:
        graph = _new_graph(self._pool_id)
        graph.capture_begin()
        result = work()
        graph.capture_end()
        return graph, result

    def bucket(self, num_rows: int) -> int | None:
        """The smallest bucket of at least ``num_rows``; None if there is none."""
        at = bisect.bisect_left(self.buckets, num_rows)
        return self.buckets[at] if at < len(self.buckets) else None

    def forward(self, bucket: int) -> paddle.Tensor:
        """Replay packing and forward; the hidden states."""
        self._captured[bucket].forward.replay()
        return self._captured[bucket].hidden

    def sample(self, bucket: int, kind: SamplingGraph) -> bool:
        """Replay what follows the forward; False if it was not captured."""
        graph = self._captured[bucket].sampling.get(kind)
        if graph is None:
            return False
        graph.replay()
        return True


class _Budget:
    """Bytes that may be taken; the dearest row so far says what the next graph probably takes."""

    def __init__(self, max_bytes: int, taken: int = 0) -> None:
        self.taken = taken
        self._max_bytes = max_bytes
        self._bytes_a_row = 0.0

    def has_room(self, rows: int) -> bool:
        return self.taken + self._bytes_a_row * rows <= self._max_bytes

    def take(self, rows: int, num_bytes: int) -> bool:
        """Whether it was within the limit; it is taken then."""
        self._bytes_a_row = max(self._bytes_a_row, num_bytes / rows)
        if self.taken + num_bytes > self._max_bytes:
            return False
        self.taken += num_bytes
        return True


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
