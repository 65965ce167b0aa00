"""For how many open requests an ingress has room: a pure function of those it had lately and of the core that they took.

A step's tokens travel as one message an ingress, so that few ingresses with many requests each take less CPU time than many with
few. The first takes what comes as long as it has room, the next what is beyond that. What a request costs is seen, not known: a
bound that was reached may double, so that what comes at once does not all go to one; one that was too high falls at once, and one
that nobody comes near to falls by and by.
"""

from __future__ import annotations

from typing import NamedTuple


class PackingRule(NamedTuple):
    """How far an ingress is filled before the next one gets something.

    Attributes:
        aim: cores of it. Less than from where on there are more ingresses (``ingresses.RULE.full``): then all have been filled.
        telling: cores from which on the use says what requests cost; less may be what the process takes by itself.
        first: requests, as long as nothing else is known.
        half_life_s: of a bound, down to twice what is open: what others cost has been forgotten by then.
    """

    aim: float = 0.55
    telling: float = 0.1
    first: float = 16.0
    half_life_s: float = 10.0


PACKING = PackingRule()


def next_limit(limit: float, num_open: float, busy: float, lasted_s: float = 1.0, rule: PackingRule = PACKING) -> float:
    """Up to how many open requests there is room, after it was ``limit`` for a while; at least 1.

    Args:
        num_open: requests that were open in that while, on average.
        busy: cores that the process used in it, or would have used had others not had them: an ingress with half a core is full
            when that half is.
        lasted_s: that while, in seconds.
    """
    # The same requests, as many as take what is aimed at.
    fitting = rule.aim * num_open / busy if busy > 0 else limit * 2
    if fitting > limit and num_open >= limit / 2:
        limit = min(fitting, limit * 2)
    elif fitting < limit and num_open >= 1 and busy >= rule.telling:
        limit = max(fitting, 1.0)
    else:  # nobody has seen of late what so many are like
        limit = min(limit, max(2 * num_open, limit * 0.5 ** (lasted_s / rule.half_life_s), 1.0))
    return limit if busy >= rule.telling else max(limit, rule.first)
