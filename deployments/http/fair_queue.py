"""Which work is next where clients share a few threads: in turns over clients, and cheap work before dear.

Weighted fair queueing (WF2Q+'s clock): each client has an account of seconds, and the next is the one whose account would be
lowest with its work added. The clock is what each client has had by now if all had the same; who comes begins there, and so has
saved up nothing. Among the work of one client the earliest deadline counts: work may wait a few times as long as it takes, so
that what is cheap goes first and what is dear has its turn.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Work = TypeVar("_Work")

_PATIENCE = 8.0
# Nobody minds to wait for so little.
CHEAP_S = 0.05


@dataclass(eq=False, slots=True)
class Ticket(Generic[_Work]):
    """One piece of work in the queue.

    Attributes:
        client: whose it is.
        cost_s: how long it is expected to take.
        work: what the queue was given.
        deadline: by the queue's clock.
    """

    client: str
    cost_s: float
    work: _Work
    deadline: float


@dataclass(slots=True)
class _Account(Generic[_Work]):
    """Of a client that has something waiting or running, or has had more than the others lately."""

    spent_s: float = 0.0
    num_running: int = 0
    waiting: list[Ticket[_Work]] = field(default_factory=list)

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.num_running


class FairQueue(Generic[_Work]):
    """Work that waits, and who has how much running. Not safe for threads.

    Args:
        num_threads: that work on it.
        now: its clock, in seconds.
    """

    def __init__(self, num_threads: int, now: Callable[[], float] = time.monotonic) -> None:
        self._num_threads = num_threads
        self._now = now
        self._num_running = 0
        self._clock_s = 0.0
        self._accounts: dict[str, _Account[_Work]] = {}

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._accounts

    def add(self, client: str, cost_s: float, work: _Work) -> Ticket[_Work]:
        """Let work wait for its turn."""
        account = self._accounts.setdefault(client, _Account())
        if not account.waiting:
            account.spent_s = max(account.spent_s, self._clock_s)
        ticket = Ticket(client, cost_s, work, self._now() + _PATIENCE * cost_s)
        insort(account.waiting, ticket, key=lambda waiting: waiting.deadline)
        return ticket

    def take(self) -> Ticket[_Work] | None:
        """The work that an idle thread is to do now; it runs from here on. None if there is none for it, or no idle thread.

        Where a single thread is idle, nobody gets it for dear work who has one already: the others would wait for that.
        """
        idle = self._num_threads - self._num_running
        if not idle:
            return None
        waiting = [account for account in self._accounts.values() if account.waiting]
        self._clock_s = max(self._clock_s, min((account.spent_s for account in waiting), default=0.0))
        best: tuple[float, float, Ticket[_Work]] | None = None
        for account in waiting:
            only_cheap = idle == 1 and account.num_running > 0
            ticket = next((t for t in account.waiting if t.cost_s <= CHEAP_S or not only_cheap), None)
            if ticket is not None:
                key = account.spent_s + ticket.cost_s, ticket.deadline
                if best is None or key < best[:2]:
                    best = *key, ticket
        if best is None:
            return None
        ticket = best[2]
        account = self._accounts[ticket.client]
        account.waiting.remove(ticket)
        account.num_running += 1
        self._num_running += 1
        account.spent_s += ticket.cost_s
        return ticket

    def finish(self, ticket: Ticket[_Work], spent_s: float) -> None:
        """The work is done and took ``spent_s`` seconds of a thread's time."""
        account = self._accounts[ticket.client]
        self._clock_s += spent_s / sum(not other.is_idle for other in self._accounts.values())
        account.num_running -= 1
        self._num_running -= 1
        account.spent_s += spent_s - ticket.cost_s
        self._tidy(ticket.client)

    def discard(self, ticket: Ticket[_Work]) -> bool:
        """Give up work that nobody wants any more; False if it runs already, or is done."""
        account = self._accounts.get(ticket.client)
        if account is None or ticket not in account.waiting:
            return False
        account.waiting.remove(ticket)
        self._tidy(ticket.client)
        return True

    def _tidy(self, client: str) -> None:
        """Forget who has nothing left to do, once the others have had as much; with nobody left, all."""
        if not self._accounts[client].is_idle:
            return
        idle = [name for name, account in self._accounts.items() if account.is_idle]
        if len(idle) == len(self._accounts):
            self._accounts.clear()
            self._clock_s = 0.0
            return
        for name in idle:
            if self._accounts[name].spent_s <= self._clock_s:
                del self._accounts[name]
