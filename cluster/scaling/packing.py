"""For how many open requests an ingress has room: a pure function of those it had lately and of the core that they took.

A step's tokens travel as one message an ingress, so that few ingresses with many requests each take less CPU time than many with
few. The first takes what comes as long as it has room, the next what is beyond that. What a request costs is seen, not known: a
bound that was reached may double, so that what comes at once does not all go to one; one that was too high falls at once.
"""

from __future__ import annotations

from typing import NamedTuple


class PackingRule(NamedTuple):
    """How far an ingress is filled before the next one gets something.

    Attributes:
        aim: cores of it. Less than from where on there are more ingresses (``ingresses.RULE.full``): then all have been filled.
        telling: cores from which on the use says what requests cost; less may be what the process takes by itself.
        first: requests, as long as nothing else is known.
    """

    aim: float = 0.7
    telling: float = 0.1
    first: float = 16.0


PACKING = PackingRule()


def next_limit(limit: float, num_open: float, cpu_share: float, rule: PackingRule = PACKING) -> float:
    """Up to how many open requests there is room, after it was ``limit`` for a while; at least 1.

    Args:
        num_open: requests that were open in that while, on average.
        cpu_share: cores that the process used in it.
    """
    # The same requests, as many as take what is aimed at.
    fitting = rule.aim * num_open / cpu_share if cpu_share > 0 else limit * 2
    if fitting > limit:
        # Where few were open nobody has seen what many are like.
        limit = min(fitting, limit * 2) if num_open >= limit / 2 else limit
    elif cpu_share >= rule.telling:
        limit = max(fitting, 1.0)
    return limit if cpu_share >= rule.telling else max(limit, rule.first)
