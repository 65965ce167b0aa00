"""Token masks that the compute threads make beside the forward, asking a grammar library by the addresses of its functions.

Where the forward computes on every core, a thread that makes masks takes a core from one of its threads in mid-work, and the
others wait for that one. A compute thread that makes a mask instead is one fewer for as long: the others take its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import NamedTuple

import numpy as np

from gpu_ops.loader import native_function

# Behind the fields of ``MaskToMake``, ``failed`` of ``csrc/kernels/sampling/mask_making.h``.
_FAILED = 6


class MaskToMake(NamedTuple):
    """A row's mask. Addresses are those of memory that stays until the masks are finished.

    Attributes:
        consume, fill: functions ``int32 (matcher, uint32 token)`` and ``int32 (matcher, int32* words, size_t bytes)``, that
            return 0 where the matcher can go on; they are called on any thread.
        matcher: what they are called with.
        token: taken since the last mask, -1 for none.
        end_words: int32 [words], the mask where the matcher cannot go on.
        mask: int32 [1 + words], as ``gpu_ops.sampling.apply_token_masks`` reads it.
    """

    consume: int
    fill: int
    matcher: int
    token: int
    end_words: int
    mask: int


class MaskMaking:
    """The masks of one step at a time.

    Args:
        num_rows: at most so many.
        words: of a mask, behind its first.
    """

    def __init__(self, num_rows: int, words: int) -> None:
        self._rows = np.zeros((num_rows, _FAILED + 1), np.int64)
        self._address = self._rows.ctypes.data
        self._words = words
        self._num_started = 0
        # Quick ones keep the interpreter's lock, which takes longer to get back.
        new = native_function("new_mask_making", c_void_p)
        self._start = native_function("start_mask_making", None, c_void_p, c_void_p, c_int64, c_int64)
        self._finish = native_function("finish_mask_making", None, c_void_p, lets_others_run=True)
        self._free = native_function("free_mask_making", None, c_void_p)
        self._handle = new()

    def start(self, rows: Sequence[MaskToMake]) -> None:
        """Let the compute threads make ``rows``; does not wait. What was started before is finished."""
        self._num_started = count = len(rows)
        if count:
            self._rows[:count, :_FAILED] = rows
            self._rows[:count, _FAILED] = 0
            self._start(self._handle, self._address, count, self._words)

    def finish(self) -> None:
        """On any thread: make what nobody has begun, wait for what others have. Lets other threads run."""
        if self._num_started:
            self._finish(self._handle)

    def failed(self) -> list[int]:
        """Rows whose matcher could not go on, in the order in which they were given; once they are finished."""
        return np.flatnonzero(self._rows[: self._num_started, _FAILED]).tolist()

    def __del__(self) -> None:
        self.finish()
        self._free(self._handle)
