"""What others may know of an engine's queue without touching the engine: a snapshot between two steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from actors.scheduling.scheduler import Scheduler
from cluster.request import RequestKey


@dataclass(frozen=True, slots=True)
class QueueState:
    """Immutable, so that any thread may read it.

    Attributes:
        open_places: requests that would begin at once.
        num_movable: by subscriber, requests that wait, have not begun and were not moved before.
        oldest: by subscriber, the key of the first of these in the order of service.
    """

    open_places: int = 0
    num_movable: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    oldest: Mapping[str, RequestKey] = field(default_factory=lambda: MappingProxyType({}))


def queue_state(scheduler: Scheduler) -> QueueState:
    """Of ``scheduler``, when a step has been planned: whoever still waits found no place in it."""
    num_movable: Counter[str] = Counter()
    oldest: dict[str, RequestKey] = {}
    for sequence in scheduler.waiting:
        if sequence.is_movable:
            subscriber = sequence.request.subscriber
            num_movable[subscriber] += 1
            oldest.setdefault(subscriber, sequence.key)
    return QueueState(scheduler.num_open_places, MappingProxyType(num_movable), MappingProxyType(oldest))
