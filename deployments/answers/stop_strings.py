"""Stop strings, matched on text that arrives in pieces."""

from __future__ import annotations

import functools
from collections.abc import Sequence


@functools.lru_cache(64)  # the choices of a request have the same stop strings
def _failure_table(pattern: str) -> list[int]:
    """``table[n]``: length of the longest proper prefix of ``pattern`` that is also a suffix of its first n characters."""
    table, length = [0, 0], 0
    for char in pattern[1:]:
        while length and pattern[length] != char:
            length = table[length]
        length += pattern[length] == char
        table.append(length)
    return table


class StopStringMatcher:
    """Releases text that no stop string can claim any more, and ends at the first stop string.

    The first match is the one that ends first, the longest of those that end together. The state advances one character at
    a time (Knuth, Morris and Pratt), so the outcome cannot depend on how the text was cut into pieces, and the work of a
    character is bounded by the number of stop strings, not by their length.

    Attributes:
        matched: the stop string that ended the text, or None.
    """

    __slots__ = ("_held", "_include", "_patterns", "_state", "matched")

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        # Longest first: of the matches that end at one character the first found is the longest.
        self._patterns = [(stop, _failure_table(stop)) for stop in sorted(set(stops), key=len, reverse=True)]
        self._state = [0] * len(self._patterns)
        self._held = ""
        self._include = include_stop
        self.matched: str | None = None

    def push(self, text: str, armed: bool = True) -> str:
        """Take in ``text``, return what can be released. A match that ends in text pushed with armed=False does not count."""
        if self.matched is not None:
            return ""
        if not self._patterns:
            return text
        state, patterns = self._state, self._patterns
        for position, char in enumerate(text):
            for i, (pattern, table) in enumerate(patterns):
                length = state[i]
                while length and pattern[length] != char:
                    length = table[length]
                if pattern[length] == char:
                    length += 1
                    if length == len(pattern):
                        if armed:
                            return self._match(pattern, self._held + text[: position + 1])
                        length = table[length]
                state[i] = length
        self._held += text
        return self._release(max(state))

    def finish(self) -> str:
        """The end of the text: release what was held back."""
        return self._release(0)

    def _match(self, pattern: str, text: str) -> str:
        self.matched = pattern
        self._held = ""
        return text if self._include else text[: -len(pattern)]

    def _release(self, keep: int) -> str:
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released
