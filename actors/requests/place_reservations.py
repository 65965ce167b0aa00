"""Places of an engine that are kept for requests which its ingresses are about to bring from full engines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

# Between the promise of a place and the request lie two calls to other engines; what has not come by then does not come.
RESERVED_FOR_S = 2.0


@dataclass(slots=True)
class _Reservation:
    subscriber: str
    left: int


class PlaceReservations:
    """Who has how many, by number: a call that is late says nothing of newer places. Belongs to one event loop.

    Args:
        release: told how many places are needed no more.
    """

    def __init__(self, release: Callable[[int], None]) -> None:
        self._release = release
        self._of: dict[int, _Reservation] = {}
        # A request may come with a number of another engine.
        self._last = random.getrandbits(48)

    def __len__(self) -> int:
        return sum(reservation.left for reservation in self._of.values())

    def add(self, subscriber: str, count: int) -> int:
        """The engine keeps ``count`` places for requests of ``subscriber``, for ``RESERVED_FOR_S`` seconds. Returns the number of
        the reservation; 0 where there is none."""
        if not count:
            return 0
        self._last += 1
        self._of[self._last] = _Reservation(subscriber, count)
        asyncio.get_running_loop().call_later(RESERVED_FOR_S, self._expire, self._last)
        return self._last

    def take(self, subscriber: str, number: int) -> bool:
        """A request comes for a place of this reservation. Returns whether one is kept, and leaves its release to the caller."""
        return bool(self._take(subscriber, number, 1))

    def give_back(self, subscriber: str, number: int, count: int) -> None:
        """So many places of this reservation ``subscriber`` does not need."""
        if taken := self._take(subscriber, number, count):
            self._release(taken)

    def _take(self, subscriber: str, number: int, count: int) -> int:
        reservation = self._of.get(number)
        if reservation is None or reservation.subscriber != subscriber:
            return 0
        taken = min(count, reservation.left)
        reservation.left -= taken
        if not reservation.left:
            del self._of[number]
        return taken

    def _expire(self, number: int) -> None:
        reservation = self._of.pop(number, None)
        if reservation is not None:
            self._release(reservation.left)
