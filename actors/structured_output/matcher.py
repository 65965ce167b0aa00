"""Where in its grammar an answer stands. Follows from the tokens alone, so that whoever has them can go on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from actors.structured_output.native import NativeMatcher


class TokenMatcher:
    """Follows one answer, and says which tokens may come next.

    Attributes:
        has_failed: the grammar asks for more work than its limits allow, or was given a token that it does not allow; nothing but
            the end may come then.
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
        self.has_failed = self.has_ended = False
        self._matcher = matcher
        self._end_words = end_words
        self._eos_token_ids = eos_token_ids
        for token in tokens:
            self.accept(token)

    def accept(self, token: int) -> None:
        """``token`` was taken. Behind the end, whatever comes changes nothing: ``min_tokens`` and ``ignore_eos`` ask for more."""
        if self.has_failed or self.has_ended:
            return
        is_end = token in self._eos_token_ids
        if is_end and self._matcher.is_stopped:
            self.has_ended = True
        elif not self._matcher.consume(token):
            self.has_failed = True
        else:
            self.has_ended = is_end

    def fill(self, mask: np.ndarray) -> None:
        """Write into int32 [1 + words] which tokens may come next, as ``gpu_ops.sampling.apply_token_masks`` reads it."""
        mask[0] = 1
        words = mask[1:]
        if not (self.has_failed or self.has_ended):
            self.has_failed = not self._matcher.fill(words)
        if self.has_failed or self.has_ended:
            words[:] = self._end_words
