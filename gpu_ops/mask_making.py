"""Token masks that the compute threads make beside the forward, asking a grammar library by the addresses of its functions.

Where the forward computes on every core, a thread that makes masks takes a core from one of its threads in mid-work, and the
others wait for that one. A compute thread that makes a mask instead is one fewer for as long: the others take its share.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import numpy as np

from gpu_ops.loader import native_function

NO_TOKEN = -1


class MaskMaker(ctypes.Structure):
    """Where an answer stands in its grammar; ``csrc/kernels/sampling/mask_making.h`` has the same fields.

    Attributes:
        consume, fill: addresses of functions ``int32 (matcher, uint32 token)`` and ``int32 (matcher, int32* words, size_t
            bytes)``, which return 0 where the matcher can go on; they are called on any thread.
        matcher: what they are called with.
        end_words: address of int32 [words], the mask where the matcher cannot go on.
        token: taken since the last mask, which the matcher has not been told; ``NO_TOKEN`` for none.
        has_failed: the matcher cannot go on.
    """

    _fields_ = [
        ("consume", c_void_p),
        ("fill", c_void_p),
        ("matcher", c_void_p),
        ("end_words", c_void_p),
        ("token", c_int64),
        ("has_failed", c_int64),
    ]


class MaskMaking:
    """The masks of one step at a time.

    Args:
        num_rows: at most so many.
        words: of a mask, behind its first.
    """

    def __init__(self, num_rows: int, words: int) -> None:
        self._rows = np.zeros((num_rows, 2), np.int64)
        self._address = self._rows.ctypes.data
        # To write through, several times as fast as the array.
        self._bytes = self._rows.data.cast("B")
        self._words = words
        self._is_started = False
        # Quick ones keep the interpreter's lock, which takes longer to get back.
        new = native_function("new_mask_making", c_void_p)
        self._start = native_function("start_mask_making", None, c_void_p, c_void_p, c_int64, c_int64)
        self._finish = native_function("finish_mask_making", None, c_void_p, lets_others_run=True)
        self._free = native_function("free_mask_making", None, c_void_p)
        self._handle = new()

    def start(self, makers_and_masks: Sequence[int]) -> None:
        """Let the compute threads make masks; does not wait. Those that were started before are finished.

        Args:
            makers_and_masks: addresses, in turn, of a ``MaskMaker`` and of the int32 [1 + words] that it writes, as
                ``gpu_ops.sampling.apply_token_masks`` reads them. Both are left alone until the masks are finished.
        """
        self._is_started = bool(makers_and_masks)
        if self._is_started:
            struct.pack_into(f"{len(makers_and_masks)}q", self._bytes, 0, *makers_and_masks)
            self._start(self._handle, self._address, len(makers_and_masks) // 2, self._words)

    def finish(self) -> None:
        """On any thread: make what nobody has begun, wait for what others have. Lets other threads run."""
        if self._is_started:
            self._finish(self._handle)

    def __del__(self) -> None:
        self.finish()
        self._free(self._handle)
