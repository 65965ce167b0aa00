"""Which request is to blame when engines die under it.

One death says little: an engine runs many requests, and machines fail on their own. A request is suspected when engines die
under it again and again without a step forward in between. A suspect that shared an engine with others is tried once more
while no other suspect is (``ISOLATE``), so that the next death names one request; those that were merely nearby go free with
their next tokens.
"""

from __future__ import annotations

import enum

PROGRESS_TOKENS = 2


class Verdict(enum.Enum):
    """What to do with a request whose engine died."""

    RETRY = "retry"
    ISOLATE = "isolate"
    QUARANTINE = "quarantine"


class Suspicion:
    """Record of one request.

    Attributes:
        deaths: engines that died while the request was there, since it last made progress.
    """

    __slots__ = ("_always_alone", "_index", "_isolated", "deaths")

    def __init__(self) -> None:
        self.deaths = 0
        self._always_alone = True
        self._isolated = False
        self._index = 0

    @property
    def must_isolate(self) -> bool:
        return self.verdict is Verdict.ISOLATE

    @property
    def verdict(self) -> Verdict:
        """Quarantine: two engines died under it alone, or three of which the last had no other suspect."""
        if self.deaths < 2:
            return Verdict.RETRY
        return Verdict.QUARANTINE if self._always_alone or self._isolated else Verdict.ISOLATE

    def progressed(self, next_index: int) -> bool:
        """Tell how many tokens the request has by now; True once they clear it."""
        if self.deaths and next_index >= self._index + PROGRESS_TOKENS:
            self.deaths = 0
            self._always_alone, self._isolated = True, False
            return True
        return False

    def engine_died(self, next_index: int, alone: bool, isolated: bool) -> Verdict:
        """An engine died while this request ran there.

        Args:
            next_index: tokens it has.
            alone: no other request of this journal was on that engine.
            isolated: it was the only suspect that was tried.
        """
        self.progressed(next_index)
        self._index = next_index
        self.deaths += 1
        self._always_alone &= alone
        self._isolated = isolated
        return self.verdict
