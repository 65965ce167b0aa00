"""Requests on their way to an engine's thread: they wait, though the engine's own queue does not show them yet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cluster.request import RequestKey


@dataclass(slots=True, eq=False)
class Arrival:
    """One request that was sent to the engine's thread.

    Attributes:
        num_tokens: of its prompt, and of the answer so far.
        priority: larger values give way; None of one that could not move to a place elsewhere.
        is_expected: a place is kept for it.
        came_at: of ``time.monotonic``.
        taken_at: when the engine took it, of the engine's clock; set on the engine's thread. None before.
    """

    num_tokens: int
    priority: int | None = None
    is_expected: bool = False
    came_at: float = field(default_factory=time.monotonic)
    taken_at: float | None = None


class Arrivals:
    """In the order in which they were sent, which is the one in which the engine takes them. Belongs to one event loop.

    Attributes:
        num_tokens: of all.
        num_unexpected: those for which no place is kept.
        num_movable: those that could move to a place elsewhere.
        num_taken: how many the engine has taken since the start; counted on the engine's thread.
    """

    def __init__(self) -> None:
        self._of: dict[RequestKey, Arrival] = {}
        self.num_tokens = 0
        self.num_unexpected = 0
        self.num_movable = 0
        self.num_taken = 0

    def __len__(self) -> int:
        return len(self._of)

    def add(self, key: RequestKey, num_tokens: int, priority: int | None = None, is_expected: bool = False) -> Arrival:
        """It is sent now."""
        arrival = self._of[key] = Arrival(num_tokens, priority, is_expected)
        self.num_tokens += num_tokens
        self.num_unexpected += not is_expected
        self.num_movable += priority is not None
        return arrival

    def forget(self, key: RequestKey) -> None:
        """The engine has seen to it, or never will."""
        arrival = self._of.pop(key, None)
        if arrival is not None:
            self.num_tokens -= arrival.num_tokens
            self.num_unexpected -= not arrival.is_expected
            self.num_movable -= arrival.priority is not None

    def seen(self, sampled_at: float) -> None:
        """The engine's queue was looked at then: what had been taken by that time shows in it."""
        while self._of:
            key, first = next(iter(self._of.items()))
            if first.taken_at is None or first.taken_at > sampled_at:
                return
            self.forget(key)

    def is_line(self, open_places: int) -> bool:
        """Whether ``line`` finds any, without looking at each."""
        return self.num_movable > 0 and self.num_unexpected > max(0, open_places)

    def line(self, open_places: int) -> tuple[int, int]:
        """How many find none of so many open places, of those that could move to one elsewhere; and the priority of the most
        urgent, 0 without any."""
        if not self.is_line(open_places):
            return 0, 0
        movable = (arrival.priority for arrival in self._of.values() if arrival.priority is not None)
        return min(self.num_unexpected - max(0, open_places), self.num_movable), min(movable)

    @property
    def longest_wait_s(self) -> float:
        """How long the first has been on its way; 0 without any."""
        first = next(iter(self._of.values()), None)
        return 0.0 if first is None else time.monotonic() - first.came_at
