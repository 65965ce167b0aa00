"""The masks of a step's rows, made by the threads that compute its forward, where these have every core."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from actors.structured_output.thinking import Matcher
from gpu_ops.mask_making import MaskMaking


def compute_threads_make_masks(is_gpu: bool, num_threads: int) -> bool:
    """Whether no core is left beside ``num_threads`` compute threads, of which there are several."""
    return not is_gpu and num_threads > 1 and num_threads >= len(os.sched_getaffinity(0))


class SharedMasks:
    """Makes the masks of one step at a time.

    Args:
        masks: int32 [B, 1 + words], where they are written.
    """

    def __init__(self, masks: np.ndarray) -> None:
        self._masks = masks
        self._address, self._row_bytes = masks.ctypes.data, masks.strides[0]
        self._making = MaskMaking(len(masks), masks.shape[1] - 1)
        # Their memory is used until the masks are finished.
        self._matchers: Mapping[int, Matcher] = {}

    def start(self, matchers: Mapping[int, Matcher]) -> None:
        """Have the mask of each slot made; does not wait. A matcher is not to be touched until its mask is there."""
        makers_and_masks: list[int] = []
        self._matchers = matchers
        for slot, matcher in matchers.items():
            if maker := matcher.maker_address:
                makers_and_masks += maker, self._address + slot * self._row_bytes
            else:
                matcher.fill(self._masks[slot])
        self._making.start(makers_and_masks)

    def finish(self) -> None:
        """Make those that nobody has begun, and wait for the others."""
        self._making.finish()
