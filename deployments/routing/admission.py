"""Whether the sequences of a request are taken: all of them together, or none.

One decision from what the engines announced last, before anything is sent to them or to the client. It cannot be exact, because
other ingresses decide at the same time: an engine that has no room after all makes a sequence wait, and refuses only a request
of one sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from cluster.api_errors import ApiError, overloaded
from cluster.outputs import EngineLoad
from cluster.scaling.recent import RecentSum

_LONGEST_RETRY_S = 30.0
_RATE_MEMORY_S = 10.0


def refusal(rooms: Sequence[EngineLoad], num_booked: int, wanted: int, ends_per_s: float) -> ApiError | None:
    """Why ``wanted`` sequences are not taken now (429, with the time after which to try again); None if they are.

    A request with more sequences than may wait in all engines together is taken when nothing waits.

    Args:
        rooms: what each engine that may be chosen said last.
        num_booked: sequences that were taken and that no engine has yet.
        ends_per_s: how many sequences end in these engines in a second; 0 if unknown.
    """
    free = sum(room.free for room in rooms) - num_booked
    may_wait = sum(room.max_queued for room in rooms)
    missing = min(wanted, may_wait) - free
    if missing <= 0:
        return None
    waiting = max(0, may_wait - free)
    message = f"{waiting} requests are waiting, the limit is {may_wait}"
    if wanted > may_wait:
        message += f"; this request has {wanted} sequences (prompts times n) and is taken when no other waits"
    elif wanted > 1:
        message += f"; this request has {wanted} sequences (prompts times n), which are taken together"
    return overloaded(message, min(_LONGEST_RETRY_S, math.ceil(missing / ends_per_s)) if ends_per_s > 0 else None)


def share_refusal(
    num_waiting: int, wanted: int, rooms: Sequence[EngineLoad], slots: int, share: float
) -> ApiError | None:
    """Why ``wanted`` sequences of one API key are not taken now: they would hold more than its ``share`` of the queues.

    So what engines would refuse for certain is not sent to them; which of the rest they refuse they know exactly. A request of
    more sequences than the share is taken when nothing else of its key waits.

    Args:
        num_waiting: sequences of the key that have no token yet.
        rooms: of the engines that may be chosen.
        slots: so many of them find one.
    """
    may_wait = sum(_share_of(room, share) for room in rooms)
    if num_waiting + min(wanted, may_wait) <= may_wait + slots:
        return None
    several = f"; this request has {wanted} sequences (prompts times n), which are taken together" if wanted > 1 else ""
    return overloaded(
        f"{num_waiting} requests of this API key are waiting, and its share of the queue (max_queue_share: {may_wait} of "
        f"{sum(room.max_queued for room in rooms)}) has no room for more{several}; others may still be served"
    )


def places_of_a_key(rooms: Sequence[EngineLoad], share: float) -> int:
    """So many of its sequences that have no token yet are not beyond its ``share``: as long as all keys together have no more,
    ``num_booked_for`` is what all of them have on their way."""
    return sum(_share_of(room, share) + max(0, room.free - room.max_queued) for room in rooms)


def num_booked_for(
    tenant: str, unplaced: Mapping[str, int], waiting: Mapping[str, int], rooms: Sequence[EngineLoad], share: float
) -> int:
    """Places that sequences on their way to engines take from a request of ``tenant``: of another key's only those that its share
    has room for. Engines refuse the rest of them, and who sends ever more must not lock the others out.

    Args:
        unplaced: sequences of each key that were taken and that no engine has yet.
        waiting: sequences of each key that engines have and that have no token yet.
        rooms: what each engine that may be chosen said last.
    """
    places = places_of_a_key(rooms, share)
    of_others = (min(count, max(0, places - waiting.get(key, 0))) for key, count in unplaced.items() if key != tenant)
    return unplaced.get(tenant, 0) + sum(of_others)


def _share_of(room: EngineLoad, share: float) -> int:
    return max(1, int(share * room.max_queued))


class EndRate:
    """How many sequences of an engine end in a second, over about the last ten seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._counted: int | None = None
        self._recent = RecentSum(_RATE_MEMORY_S, now)

    def count(self, num_ended: int) -> None:
        """So many have ended since the engine started."""
        if self._counted is not None:
            self._recent.add(num_ended - self._counted)
        self._counted = num_ended

    @property
    def per_s(self) -> float:
        """Sequences a second."""
        return self._recent.per_s
