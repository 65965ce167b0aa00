"""How many requests an ingress holds while there is no engine: its share of what all together may hold. Pure functions.

Ingresses decide at the same moment and cannot ask each other first, so each has a part that it may fill alone; parts add up to
the whole. What others hold beyond theirs, since they had larger ones before another ingress came, is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class HoldShare(NamedTuple):
    """Of one ingress.

    Attributes:
        number, num_ingresses: its own among those that live, from 0.
        held_elsewhere: requests that the others hold, as they said last.
    """

    number: int = 0
    num_ingresses: int = 1
    held_elsewhere: int = 0

    def part(self, total: int) -> int:
        """Of ``total`` places; what is left over goes to the first ones."""
        share, rest = divmod(total, self.num_ingresses)
        return share + (self.number < rest)

    def excess(self, total: int, own: int) -> int:
        """How many of its ``own`` places of ``total`` the others have taken."""
        return max(0, self.held_elsewhere - (total - own))


def hold_share(own: str, held: Mapping[str, int]) -> HoldShare:
    """
    Args:
        own: name of the ingress.
        held: by name, what each ingress that lives said last; ``own`` may be among them.
    """
    names = sorted({own, *held})
    elsewhere = sum(max(0, count) for name, count in held.items() if name != own)
    return HoldShare(names.index(own), len(names), elsewhere)
