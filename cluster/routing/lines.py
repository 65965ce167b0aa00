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
        num_sent: requests that this ingress has sent there since.
        length: requests, whosever, that wait there and may move to a place elsewhere.
        priority: of the most urgent of these; larger values give way.
        free: requests that it would take, to run or to wait.
    """

    engine_id: str
    is_known: bool = True
    open_places: int = 0
    num_sent: int = 0
    length: int = 0
    priority: int = 0
    free: int = 1


def open_to_arrival(lines: Sequence[Line], priority: int = 0) -> frozenset[str]:
    """The engines to which an arrival of this priority may go, by id; all of them where nobody is overtaken anywhere.

    With more open places than requests that wait and are as urgent, those that have some: nobody waits while there is room.
    With no more, those in which such requests wait: the arrival stands behind them, and moves when they have.
    """
    known = [line for line in lines if line.is_known]
    waiting = [line for line in lines if line.length and line.priority <= priority]
    places = {line.engine_id: line.open_places - line.num_sent for line in known if not line.length}
    with_room = [engine_id for engine_id, left in places.items() if left > 0]
    if sum(places[engine_id] for engine_id in with_room) > sum(line.length for line in waiting):
        unknown = [] if waiting else [line.engine_id for line in lines if not line.is_known]
        return frozenset((*with_room, *unknown))
    behind = [line.engine_id for line in waiting if line.free > line.num_sent]
    return frozenset(behind or [line.engine_id for line in lines])
