"""The masks of a step's rows, made on a few threads where the device leaves cores for them.

A mask takes tens of microseconds and now and then many times as long, so those of 64 rows may take longer than the forward beside
which they are made. Each follows from its own answer alone, so who makes it changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from actors.structured_output.thinking import Matcher

_MOST_THREADS = 4
# To hand rows to a thread costs as much as to make one or two masks.
_ROWS_A_THREAD = 4


def spare_threads(is_gpu: bool) -> int:
    """Threads that make masks. A quarter of the cores where a GPU computes; on the CPU the forward has them all."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // 4)) if is_gpu else 1


class MaskFilling:
    """Makes masks; belongs to the engine's thread, which makes its share.

    Args:
        num_threads: the engine's own among them.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1, "masks") if num_threads > 1 else None

    def fill(self, matchers: Mapping[int, Matcher], masks: np.ndarray) -> None:
        """Write into int32 [B, 1 + words] what the matcher of each slot allows."""
        rows = [(matcher, masks[slot]) for slot, matcher in matchers.items()]
        shares = min(self._num_threads, len(rows) // _ROWS_A_THREAD)
        if self._pool is None or shares < 2:
            _fill(rows)
            return
        others = [self._pool.submit(_fill, rows[i::shares]) for i in range(1, shares)]
        try:
            _fill(rows[::shares])
        finally:
            wait(others)  # whatever goes wrong, nobody writes masks any more
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _fill(rows: list[tuple[Matcher, np.ndarray]]) -> None:
    for matcher, mask in rows:
        matcher.fill(mask)
