"""Whose turn it is to move when requests of several ingresses wait in one engine and another one has places for some of them.

Each ingress moves its own requests, and the one that asks first need not be the one whose requests came first. A request that
comes before those of the asking ingress has its place left to it, for a time in which its own ingress asks if it can.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.request import RequestKey

# Two looks of a balancer that found no place.
LEFT_FOR_S = 0.4


class TurnsToMove:
    """Of one engine; belongs to its thread."""

    def __init__(self) -> None:
        self._since: dict[RequestKey, float] = {}

    def is_left_to(self, key: RequestKey, now: float) -> bool:
        """Whether a place is left to this request, which another ingress asks for at ``now``."""
        return now - self._since.setdefault(key, now) < LEFT_FOR_S

    def keep(self, waiting: Iterable[RequestKey]) -> None:
        """Forget those that do not wait any more."""
        if self._since:
            keys = set(waiting)
            self._since = {key: since for key, since in self._since.items() if key in keys}
