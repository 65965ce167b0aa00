"""Where in its grammar an answer stands. Follows from the tokens alone, so that whoever has them can go on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from actors.structured_output.native import NativeMatcher
from gpu_ops.mask_making import MaskToMake


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
        self.has_ended = self._has_failed = False
        # The grammar is told of a token when it is asked for the next mask, by whoever makes that.
        self._untold: int | None = None
        self._matcher = matcher
        self._end_words = end_words
        self._end_address = end_words.ctypes.data
        self._eos_token_ids = eos_token_ids
        for token in tokens:
            self.accept(token)

    def accept(self, token: int) -> None:
        """``token`` was taken. Behind the end, whatever comes changes nothing: ``min_tokens`` and ``ignore_eos`` ask for more."""
        if self._untold is not None:
            self._tell()
        if self._has_failed or self.has_ended:
            return
        self._untold = token
        if token in self._eos_token_ids:
            if self._matcher.is_stopped:
                self._untold = None
            else:
                self._tell()
            self.has_ended = not self._has_failed

    @property
    def has_failed(self) -> bool:
        """The grammar asks for more work than its limits allow, or was given a token that it does not allow; nothing but the end
        may come then."""
        self._tell()
        return self._has_failed

    def _tell(self) -> None:
        token, self._untold = self._untold, None
        if token is not None and not self._matcher.consume(token):
            self._has_failed = True

    def fill(self, mask: np.ndarray) -> None:
        """Write into int32 [1 + words] which tokens may come next, as ``gpu_ops.sampling.apply_token_masks`` reads it."""
        mask[0] = 1
        words = mask[1:]
        if not (self.has_failed or self.has_ended):
            self._has_failed = not self._matcher.fill(words)
        if self._has_failed or self.has_ended:
            words[:] = self._end_words

    def mask_to_make(self, address: int) -> MaskToMake | None:
        """What ``fill`` would do to the mask at ``address``, for somebody who does it before this is asked for anything else, and
        says ``fail`` where the matcher cannot go on. None: only ``fill`` can do it."""
        if self._has_failed or self.has_ended:
            return None
        token, self._untold = self._untold, None
        return MaskToMake(*self._matcher.addresses, -1 if token is None else token, self._end_address, address)

    def fail(self) -> None:
        """The matcher could not go on with what ``mask_to_make`` said."""
        self._has_failed = True
