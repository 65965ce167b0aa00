"""Capturing CUDA graphs into memory of their own, up to a limit.

Each graph holds the memory of its intermediate results: Paddle 2.6 gives every graph a pool of its own, Paddle 3 lets all
share one. Either way it is measured, and capturing ends where the limit is reached.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import paddle


class CapturedGraph:
    """Work that was enqueued once and is replayed with the same addresses.

    Attributes:
        result: what the work returned, which each replay fills again.
    """

    def __init__(self, graph: Any, result: Any) -> None:
        self._graph = graph
        self.result = result

    def replay(self) -> Any:
        """Enqueue the work; returns ``result``."""
        self._graph.replay()
        return self.result


class GraphCapture:
    """The memory of all graphs of an engine.

    Attributes:
        num_graphs, num_bytes: captured so far, and what they took.

    Args:
        free_bytes: what the device has left.
        max_bytes: most that graphs may take; a graph is left out if it probably goes beyond.
    """

    def __init__(self, free_bytes: Callable[[], int], max_bytes: int) -> None:
        self.num_graphs = self.num_bytes = 0
        self.max_bytes = max_bytes
        self.free_bytes = free_bytes
        self.pool_id = _shared_pool()

    def series(self) -> GraphSeries:
        """For graphs of one kind, whose memory grows with their rows alike."""
        return GraphSeries(self)


class GraphSeries:
    """The dearest row so far says what the next graph probably takes."""

    def __init__(self, capture: GraphCapture) -> None:
        self._all = capture
        self._bytes_a_row = 0.0

    def capture(self, rows: int, work: Callable[[], Any]) -> CapturedGraph | None:
        """``work`` as a graph; None if the limit has no room for it.

        It is called twice: the first call of an op with a new shape chooses algorithms and may allocate, and is not captured.
        """
        graphs = self._all
        if graphs.num_bytes + self._bytes_a_row * rows > graphs.max_bytes:
            return None
        work()
        paddle.device.cuda.synchronize()
        before = graphs.free_bytes()
        graph = _new_graph(graphs.pool_id)
        graph.capture_begin()
        result = work()
        graph.capture_end()
        taken = max(0, before - graphs.free_bytes())
        self._bytes_a_row = max(self._bytes_a_row, taken / rows)
        if graphs.num_bytes + taken > graphs.max_bytes:
            graph.reset()
            return None
        graphs.num_bytes += taken
        graphs.num_graphs += 1
        return CapturedGraph(graph, result)


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
