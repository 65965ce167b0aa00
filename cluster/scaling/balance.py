"""Which engines give waiting requests to which: pure functions of what the engines say of themselves.

To a place: a request that came to one begins at once and never moves again. A load that stays as it is moves nobody: where a
place is free nobody waits, and where somebody waits there is no place. An engine grants each place once, so several ingresses
that decide at the same time do not send more than it has.

To the line in which somebody has waited longest, where no place is open: as long as several engines have lines, each begins its
own first request, whoever has waited longer in another. Of one line every place that opens anywhere takes the first. A line
gives only to one whose first request came clearly sooner, so again a load that stays as it is moves nobody, and nobody moves from
line to line twice before somebody who came sooner has begun.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# Who waits for less is likely to begin before a move is over; and requests that come together spread out first.
MIN_WAIT_S = 0.1
# Lines whose first requests came within this time of each other are left as they are: requests that come together stand in
# several, and ingresses that know the waits of engines a little differently agree which of two lines is the older one.
SAME_TIME_S = 0.25
# Of an engine's queue, what those who come from other lines may fill: what arrives meanwhile finds room behind them.
LINE_SHARE = 0.5
# So many of a line move at a time: each costs its ingress a call, during which no tokens are written.
MOST_OF_A_LINE = 32


class BalanceView(NamedTuple):
    """An engine as one ingress sees it.

    Attributes:
        engine_id: unique among them.
        num_movable: requests of this ingress that wait there, have not begun, and for which no place was kept there.
        oldest_wait_s: how long the first of them has waited since it came to the ingress, in engines that are gone, too.
        open_places: requests that would begin there at once.
        line_length: such requests of all ingresses.
        longest_wait_s: how long the first of all who wait there has done so.
        line_room: so many more may come into the line from other engines.
    """

    engine_id: str
    num_movable: int = 0
    oldest_wait_s: float = 0.0
    open_places: int = 0
    line_length: int = 0
    longest_wait_s: float = 0.0
    line_room: int = 0


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


def line_moves(engines: Sequence[BalanceView]) -> list[Move]:
    """Moves that bring those who wait in full engines into one line, in which they stand in the order in which they came.

    It is the line in which somebody has waited longest, of equal ones the last by name. Each other one goes there as a whole, if
    all of it has room: what stayed of it would begin before those who went. The requests that other ingresses are to bring count,
    too, so that all may decide at once.
    """
    lines = [engine for engine in engines if engine.line_length > 0 and engine.open_places <= 0]
    lines.sort(key=lambda engine: (engine.longest_wait_s, engine.engine_id), reverse=True)
    found: list[Move] = []
    for engine in lines[1:]:
        first = lines[0]
        is_younger = first.longest_wait_s - engine.longest_wait_s > SAME_TIME_S
        if is_younger and engine.line_length <= first.line_room:
            lines[0] = first._replace(line_room=first.line_room - engine.line_length)
            if engine.num_movable > 0:
                found.append(Move(engine.engine_id, first.engine_id, engine.num_movable))
    return found


def is_worth_moving(waited_s: float, num_cached_tokens: int, tokens_per_s: float) -> bool:
    """Whether a request pays for the part of its prompt that is in the cache where it waits, and that another engine computes
    anew: it is expected to wait as long again as it has waited.

    Args:
        waited_s: since it came to its ingress: who has waited elsewhere before moves sooner.
        tokens_per_s: that an engine computes; 0 if unknown.
    """
    return waited_s >= MIN_WAIT_S + (num_cached_tokens / tokens_per_s if tokens_per_s > 0 else 0.0)
