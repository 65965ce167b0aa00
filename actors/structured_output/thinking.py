"""How long an answer may reason: behind so many tokens, the end of its reasoning is all that may come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from cluster.reasoning import ReasoningMarks

# What the parsers of answers pass before a mark.
_SPACE = b" \t\r\n"
_BEFORE, _INSIDE, _BEHIND = range(3)


class Matcher(Protocol):
    """Says which tokens an answer may have next; follows from those that it has."""

    @property
    def has_failed(self) -> bool: ...

    def accept(self, token: int) -> None: ...

    def fill(self, mask: np.ndarray) -> None: ...

    @property
    def maker_address(self) -> int: ...


class ThinkingMatcher:
    """Follows one answer to the end of its reasoning, and forces that end, token by token, once the budget is used up.

    A grammar beside it goes first in one thing: where it does not allow the end yet, as in the middle of a character, its own
    tokens come until it does.

    Args:
        budget: most tokens between the marks.
        token_bytes: what a token writes into an answer.
        inner: of the answer's grammar; None without one.
        tokens: of the answer so far, which ``inner`` has already.
    """

    def __init__(
        self,
        budget: int,
        marks: ReasoningMarks,
        token_bytes: Callable[[int], bytes],
        inner: Matcher | None = None,
        tokens: Iterable[int] = (),
    ) -> None:
        self._budget = budget
        self._token_bytes = token_bytes
        self._inner = inner
        self._begins = tuple(mark.encode() for mark in marks.begins)
        self._ends = tuple(mark.encode() for mark in marks.ends)
        self._forced = marks.end_token_ids
        self._num_forced = self._num_inside = 0
        self._place = _INSIDE if marks.is_open else _BEFORE
        # Before: all of the text. Inside: as much of it as an end may have begun in.
        self._text = b""
        for token in tokens:
            self._follow(token)

    @property
    def has_failed(self) -> bool:
        return self._inner is not None and self._inner.has_failed

    def accept(self, token: int) -> None:
        """``token`` was taken."""
        if self._inner is not None:
            self._inner.accept(token)
        self._follow(token)

    def fill(self, mask: np.ndarray) -> None:
        """As ``TokenMatcher.fill``; a row that may take anything keeps the 0 in front."""
        mask[0] = 0
        if self._inner is not None:
            self._inner.fill(mask)
        if not self._is_due:
            return
        token = self._forced[self._num_forced]
        word, bit = 1 + token // 32, np.uint32(1) << np.uint32(token % 32)
        bits = mask.view(np.uint32)
        if mask[0] and not bits[word] & bit:
            return
        mask[0], mask[1:] = 1, 0
        bits[word] = bit

    @property
    def maker_address(self) -> int:
        """As that of ``TokenMatcher``: here ``fill`` has to look at what the grammar allows."""
        return 0

    @property
    def _is_due(self) -> bool:
        return self._place == _INSIDE and self._num_inside >= self._budget

    def _follow(self, token: int) -> None:
        if self._place == _BEHIND:
            return
        written = self._token_bytes(token)
        if self._place == _BEFORE:
            self._text = (self._text + written).lstrip(_SPACE)
            begin = next((begin for begin in self._begins if self._text.startswith(begin)), None)
            if begin is not None:
                self._place, written, self._text = _INSIDE, self._text[len(begin) :], b""
            elif not any(begin.startswith(self._text) for begin in self._begins):
                self._place = _BEHIND
        elif self._is_due and token == self._forced[self._num_forced]:
            self._num_forced += 1
        else:
            self._num_inside += 1
        if self._place == _INSIDE:
            self._text = self._text[-max(map(len, self._ends)) :] + written
            if self._num_forced == len(self._forced) or any(end in self._text for end in self._ends):
                self._place = _BEHIND
