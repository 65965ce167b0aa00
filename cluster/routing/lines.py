"""Where an arrival goes so that it overtakes nobody: a pure function of the room and the lines that engines announced.

Requests that wait in a full engine move to a place that opens elsewhere. Until they have, that place is theirs: an arrival takes
only room that is left when all who wait have theirs, and else stands behind some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """Who waits in an engine, and who would not have to, as an ingress knows it.

    Attributes:
        engine_id: unique among them.
        is_known: the engine has said this of late. Of another one only its line counts, until it says how that is.
        open_places: requests that would begin there at once.
        num_sent: requests that this ingress has sent there since, for which no place is kept.
        sent_priority: of the most urgent of these; larger values give way.
        length: requests, whosever, that wait there and may move to a place elsewhere.
        priority: of the most urgent of these.
        free: requests that it would take, to run or to wait.
        waited_s: for how long the first who waits there has done so.
    """

    engine_id: str
    is_known: bool = True
    open_places: int = 0
    num_sent: int = 0
    sent_priority: int = 0
    length: int = 0
    priority: int = 0
    free: int = 1
    waited_s: float = 0.0

    @property
    def places_left(self) -> int:
        """For who comes now; those that were sent have theirs, and who waits there is first."""
        return 0 if self.length else self.open_places - self.num_sent

    def num_waiting(self, priority: int) -> int:
        """Requests that wait there by now and are, or stand behind one that is, as urgent as that."""
        found = self.length if self.length and self.priority <= priority else 0
        if self.num_sent and self.sent_priority <= priority:
            found += self.num_sent if self.length else max(0, self.num_sent - max(0, self.open_places))
        return found


def open_to_arrival(lines: Sequence[Line], priority: int = 0) -> frozenset[str]:
    """The engines to which an arrival of this priority may go, by id; all of them where nobody is overtaken anywhere.

    With more open places than requests that wait and are as urgent, those that have some: nobody waits while there is room.
    With no more, the one in which somebody has waited longest of those in which such requests are said to wait: the arrival
    stands behind them, and moves when they have. The other lines run empty meanwhile, and are filled from that one. Where no
    engine has said so yet, or the one that did has fallen silent, those without an open place, of which it would deprive them.
    Where the queues of all these are full, those with an open place: the others would refuse it.
    """
    num_waiting = sum(line.num_waiting(priority) for line in lines)
    known = [line for line in lines if line.is_known]
    with_room = [line for line in known if line.places_left > 0]
    if sum(line.places_left for line in with_room) > num_waiting:
        unknown = [] if num_waiting else [line for line in lines if not line.is_known]
        return _ids((*with_room, *unknown))
    if not num_waiting:
        return _ids(lines)
    full = _full(known)
    behind = [line for line in full if line.length and line.priority <= priority]
    longest_s = max((line.waited_s for line in behind), default=0.0)
    behind = [line for line in behind if line.waited_s >= longest_s]
    return _ids(behind or full or with_room or known or lines)


def must_wait(lines: Sequence[Line], priority: int = 0) -> bool:
    """Whether an arrival of this priority had better wait at its ingress: no full engine takes it into its queue, and each open
    place is that of a request as urgent that waits in one of them and is about to move. Then there is room in a queue, too."""
    known = [line for line in lines if line.is_known]
    places = sum(max(0, line.places_left) for line in known)
    waiting = sum(line.num_waiting(priority) for line in known)
    return 0 < places <= waiting and not _full(known)


def _full(known: Sequence[Line]) -> list[Line]:
    """Those without an open place whose queue takes one more."""
    return [line for line in known if line.places_left <= 0 and line.free > line.num_sent]


def _ids(lines: Sequence[Line]) -> frozenset[str]:
    return frozenset(line.engine_id for line in lines)
