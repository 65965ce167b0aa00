"""Where in its grammar an answer stands. Follows from the tokens alone, so that whoever has them can go on."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np

from actors.structured_output.native import NativeMatcher
from gpu_ops.mask_making import NO_TOKEN, MaskMaker


class TokenMatcher:
    """Follows one answer, and says which tokens may come next.

    Attributes:
        has_ended: the structure is complete, and its end was taken.

    Args:
        matcher: at the beginning of the grammar; not shared.
        end_words: int32 [words], the mask of the tokens that end an answer.
        eos_token_ids: these tokens.
        tokens: of the answer so far.
    """

    def __init__(
        self,
        matcher: NativeMatcher,
        end_words: np.ndarray,
        eos_token_ids: frozenset[int],
        tokens: Iterable[int] = (),
    ) -> None:
        self.has_ended = False
        self._matcher = matcher
        self._end_words = end_words
        # The grammar is told of a token when it is asked for the next mask, by whoever makes that.
        self._maker = MaskMaker(*matcher.addresses, end_words.ctypes.data, NO_TOKEN, has_failed=False)
        self._maker_address = ctypes.addressof(self._maker)
        self._eos_token_ids = eos_token_ids
        for token in tokens:
            self.accept(token)

    def accept(self, token: int) -> None:
        """``token`` was taken. Behind the end, whatever comes changes nothing: ``min_tokens`` and ``ignore_eos`` ask for more."""
        if self.has_failed or self.has_ended:
            return
        is_end = token in self._eos_token_ids
        if not (is_end and self._matcher.is_stopped):
            self._maker.token = token
        self.has_ended = is_end and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """The grammar asks for more work than its limits allow, or was given a token that it does not allow; nothing but the end
        may come then."""
        maker = self._maker
        if maker.token != NO_TOKEN:
            maker.has_failed = not self._matcher.consume(maker.token)
            maker.token = NO_TOKEN
        return bool(maker.has_failed)

    def fill(self, mask: np.ndarray) -> None:
        """Write into int32 [1 + words] which tokens may come next, as ``gpu_ops.sampling.apply_token_masks`` reads it."""
        mask[0] = 1
        words = mask[1:]
        if not (self.has_failed or self.has_ended):
            self._maker.has_failed = not self._matcher.fill(words)
        if self._maker.has_failed or self.has_ended:
            words[:] = self._end_words

    @property
    def maker_address(self) -> int:
        """Of a ``MaskMaker`` that does what ``fill`` would before this is asked for anything else; 0: only ``fill`` does it."""
        return 0 if self.has_ended else self._maker_address
