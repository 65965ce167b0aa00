"""Requests that wait for a slot, in the order in which they are admitted: by priority, answers in the middle first, then tenants
in turn, then age.

Tenants (API keys) take turns within a priority, as in fair queueing by rounds: a request's turn is the round that is being
admitted, or the one after its tenant's last if that is later. It is decided on arrival, so the order of those that wait never
changes; who has nothing waiting saves up nothing, and one tenant alone is served by age. A request that waited in an engine which
is gone is older than some that wait here: it takes the turn of the first of these that its tenant has, and they move up by one.
"""

from __future__ import annotations

import bisect
import operator
from collections import Counter
from collections.abc import Iterator

from actors.scheduling.sequence import Sequence


class _Rounds:
    """The turns of one priority, as long as some of its requests wait.

    Attributes:
        current: the latest round of which a request was admitted.
        last: each tenant's last turn.
        num_waiting: requests of each tenant.
        youngest: when the youngest request came that each tenant had here.
    """

    def __init__(self) -> None:
        self.current = 0
        self.last: dict[str, int] = {}
        self.num_waiting: Counter[str] = Counter()
        self.youngest: dict[str, float] = {}


class WaitingQueue:
    """Sequences in the order in which they are admitted."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._rounds: dict[int, _Rounds] = {}
        self._num_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self._sequences[index]

    def num_of(self, tenant: str) -> int:
        """Requests of ``tenant``."""
        return self._num_of[tenant]

    def add(self, sequence: Sequence) -> None:
        """Take in a request that has just arrived."""
        rounds, tenant = self._count(sequence), sequence.request.tenant
        if sequence.is_to_begin:
            sequence.turn = rounds.last[tenant] = max(rounds.current, rounds.last.get(tenant, -1) + 1)
            if sequence.came_at < rounds.youngest.get(tenant, sequence.came_at):
                self._take_turn_of_younger(sequence)
            else:
                rounds.youngest[tenant] = sequence.came_at
        bisect.insort(self._sequences, sequence, key=_order)

    def _take_turn_of_younger(self, sequence: Sequence) -> None:
        """Those of its tenant that are younger have the turns behind it; who has had a turn keeps it."""
        request, turn = sequence.request, sequence.turn
        younger = [s for s in self._sequences if s.turn >= 0 and s.is_to_begin and s.seniority > sequence.seniority]
        younger = [s for s in younger if (s.request.priority, s.request.tenant) == (request.priority, request.tenant)]
        turns = [*(s.turn for s in younger), turn]
        for one, turn in zip((sequence, *younger), turns):
            one.turn = turn
        self._sequences.sort(key=_order)

    def put_back(self, sequence: Sequence) -> None:
        """Take in a request that has had its turn: it goes before all those to begin."""
        self._count(sequence)
        sequence.turn = -1
        bisect.insort(self._sequences, sequence, key=_order)

    def admit(self, sequence: Sequence) -> None:
        """Let a request go whose turn has come."""
        rounds = self._rounds[sequence.request.priority]
        rounds.current = max(rounds.current, sequence.turn)
        self._remove(sequence, rounds)

    def give_up(self, sequence: Sequence) -> None:
        """Let a request go that nobody wants any more."""
        rounds, tenant = self._rounds[sequence.request.priority], sequence.request.tenant
        self._remove(sequence, rounds)
        if not rounds.num_waiting[tenant] and tenant in rounds.last:
            # It does not wait for rounds that it has given up.
            rounds.last[tenant] = min(rounds.last[tenant], rounds.current)

    def _count(self, sequence: Sequence) -> _Rounds:
        rounds = self._rounds.setdefault(sequence.request.priority, _Rounds())
        rounds.num_waiting[sequence.request.tenant] += 1
        self._num_of[sequence.request.tenant] += 1
        return rounds

    def _remove(self, sequence: Sequence, rounds: _Rounds) -> None:
        self._sequences.remove(sequence)
        tenant = sequence.request.tenant
        rounds.num_waiting[tenant] -= 1
        self._num_of[tenant] -= 1
        # Priorities come from clients: nothing is kept of those of which nobody waits.
        if not rounds.num_waiting.total():
            del self._rounds[sequence.request.priority]
        if not self._num_of[tenant]:
            del self._num_of[tenant]


_order = operator.attrgetter("order")
