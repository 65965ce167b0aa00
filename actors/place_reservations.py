"""Places of an engine that are kept for requests which its ingresses are about to bring from full engines."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Between the promise of a place and the request lie two calls to other engines; what has not come by then does not come.
RESERVED_FOR_S = 2.0


@dataclass(slots=True, eq=False)
class _Reservation:
    left: int


class PlaceReservations:
    """Who has how many; belongs to one event loop.

    Args:
        release: told how many places are needed no more.
    """

    def __init__(self, release: Callable[[int], None]) -> None:
        self._release = release
        self._of: dict[str, deque[_Reservation]] = {}

    def add(self, subscriber: str, count: int) -> None:
        """The engine keeps ``count`` places for requests of ``subscriber``, for ``RESERVED_FOR_S`` seconds."""
        if count:
            reservation = _Reservation(count)
            self._of.setdefault(subscriber, deque()).append(reservation)
            asyncio.get_running_loop().call_later(RESERVED_FOR_S, self._expire, subscriber, reservation)

    def take(self, subscriber: str) -> bool:
        """A request has come for which a place may be kept; returns whether one was, and leaves its release to the caller."""
        reservations = self._of.get(subscriber)
        if not reservations:
            return False
        reservations[0].left -= 1
        if not reservations[0].left:
            self._forget(subscriber, reservations[0])
        return True

    def give_back(self, subscriber: str, count: int) -> None:
        """So many of its places ``subscriber`` does not need."""
        taken = sum(self.take(subscriber) for _ in range(count))
        if taken:
            self._release(taken)

    def _expire(self, subscriber: str, reservation: _Reservation) -> None:
        if reservation.left:
            left, reservation.left = reservation.left, 0
            self._forget(subscriber, reservation)
            self._release(left)

    def _forget(self, subscriber: str, reservation: _Reservation) -> None:
        reservations = self._of[subscriber]
        reservations.remove(reservation)
        if not reservations:
            del self._of[subscriber]
