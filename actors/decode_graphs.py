"""CUDA graphs of pure decode steps: one for the forward and one for the postprocess of each batch bucket.

A step of n rows replays the smallest bucket that holds n; surplus rows carry slot -1. Tensors that a graph reads or
writes keep their addresses: the state and the packed rows by design, the hidden states because they are kept here.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

import paddle

from cluster.cache import Progress


def decode_buckets(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then in steps of 8 to 64, of 16 to 256, of 64 beyond; the last is ``max_num_seqs``."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(320, 1025, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class _Bucket(NamedTuple):
    forward: object
    postprocess: object
    hidden: paddle.Tensor


class DecodeGraphs:
    """Captures at construction, largest bucket first.

    Args:
        buckets: numbers of rows, ascending.
        forward: enqueues packing and forward of that many rows and returns the hidden states.
        postprocess: enqueues what follows, up to the packed outputs.
        progress: called as ``progress("decode graphs", done, total)``.
    """

    def __init__(
        self,
        buckets: list[int],
        forward: Callable[[int], paddle.Tensor],
        postprocess: Callable[[int, paddle.Tensor], None],
        progress: Progress | None = None,
    ) -> None:
        from paddle.device.cuda.graphs import CUDAGraph

        self.buckets = buckets
        self._captured: dict[int, _Bucket] = {}
        for rows in reversed(buckets):
            # Not captured: the first call of an op with a new shape chooses algorithms and may allocate.
            postprocess(rows, forward(rows))
            paddle.device.cuda.synchronize()
            first, second = CUDAGraph(), CUDAGraph()
            first.capture_begin()
            hidden = forward(rows)
            first.capture_end()
            second.capture_begin()
            postprocess(rows, hidden)
            second.capture_end()
            self._captured[rows] = _Bucket(first, second, hidden)
            if progress:
                progress("decode graphs", len(self._captured), len(buckets))

    def bucket(self, num_rows: int) -> int:
        """The smallest bucket of at least ``num_rows``."""
        return self.buckets[bisect.bisect_left(self.buckets, num_rows)]

    def forward(self, bucket: int) -> paddle.Tensor:
        """Replay packing and forward; the hidden states."""
        self._captured[bucket].forward.replay()  # type: ignore[attr-defined]
        return self._captured[bucket].hidden

    def postprocess(self, bucket: int) -> None:
        """Replay what follows the forward."""
        self._captured[bucket].postprocess.replay()  # type: ignore[attr-defined]
