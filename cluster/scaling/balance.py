"""Which engines give waiting requests to which: a pure function of what the engines say of themselves.

A request moves only to a place where it begins at once, so that it never moves twice, and a load that stays as it is moves
nobody: where a place is free nobody waits, and where somebody waits there is no place. An engine grants each place once, so
several ingresses that decide at the same time do not send more than it has.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# Who waits for less is likely to begin before a move is over; and requests that come together spread out first.
MIN_WAIT_S = 0.1


class BalanceView(NamedTuple):
    """An engine as one ingress sees it.

    Attributes:
        engine_id: unique among them.
        num_movable: requests of this ingress that wait there, have not begun, and for which no place was kept there.
        oldest_wait_s: how long the first of them has waited since it came to the ingress, in engines that are gone, too.
        open_places: requests that would begin there at once.
    """

    engine_id: str
    num_movable: int = 0
    oldest_wait_s: float = 0.0
    open_places: int = 0


class Move(NamedTuple):
    """So many requests, the first in the source's order of service, go to the target."""

    source: str
    target: str
    num_requests: int


def is_source(engine: BalanceView) -> bool:
    """Whether requests have waited long enough there, and none would begin at once."""
    return engine.num_movable > 0 and engine.oldest_wait_s >= MIN_WAIT_S and engine.open_places <= 0


def moves(engines: Sequence[BalanceView]) -> list[Move]:
    """Moves that fill open places with requests that wait elsewhere, in the order in which they are to be made.

    Place by place it goes to the engine whose next request has waited longest, supposing that those who wait there came at even
    times; and is taken where most places are open. Of equal ones the last by name goes first.
    """
    by_name = sorted({e.engine_id: e for e in engines}.values(), key=lambda engine: engine.engine_id, reverse=True)

    def next_wait_s(engine: BalanceView, left: int) -> float:
        return engine.oldest_wait_s * left / engine.num_movable

    # (what is looked for, negative; rank by name; how many are left), the first of each heap being the choice.
    sources = [(-next_wait_s(e, e.num_movable), rank, e.num_movable) for rank, e in enumerate(by_name) if is_source(e)]
    places = [(-e.open_places, rank) for rank, e in enumerate(by_name) if e.open_places > 0 and not e.num_movable]
    heapq.heapify(sources)
    heapq.heapify(places)
    counts: Counter[tuple[str, str]] = Counter()
    while sources and places:
        _, source, left = sources[0]
        num_open, target = places[0]
        engine = by_name[source]
        counts[engine.engine_id, by_name[target].engine_id] += 1
        if left > 1:
            heapq.heapreplace(sources, (-next_wait_s(engine, left - 1), source, left - 1))
        else:
            heapq.heappop(sources)
        if num_open < -1:
            heapq.heapreplace(places, (num_open + 1, target))
        else:
            heapq.heappop(places)
    return [Move(source, target, count) for (source, target), count in counts.items()]


def is_worth_moving(waited_s: float, num_cached_tokens: int, tokens_per_s: float) -> bool:
    """Whether a request pays for the part of its prompt that is in the cache where it waits, and that another engine computes
    anew: it is expected to wait as long again as it has waited.

    Args:
        waited_s: since it came to its ingress: who has waited elsewhere before moves sooner.
        tokens_per_s: that an engine computes; 0 if unknown.
    """
    return waited_s >= MIN_WAIT_S + (num_cached_tokens / tokens_per_s if tokens_per_s > 0 else 0.0)
