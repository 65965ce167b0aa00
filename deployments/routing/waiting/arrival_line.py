"""Requests that have just come and wait here for a moment, since elsewhere they would take the places of those who wait."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable

from deployments.routing.submission import Submission

# Those who wait move within this time; where they have not, a place that nobody takes is of no use to anybody.
HELD_FOR_S = 0.5


class ArrivalLine:
    """By priority, and of equal ones in the order in which they came. Belongs to one event loop.

    Args:
        must_wait: whether a request of this priority would take another one's place now (``cluster.routing.lines``); who is less
            urgent than one that must wait must wait, too.
        begin: sends a request on its way; but where calls are put off, it counts there at once.
    """

    def __init__(self, must_wait: Callable[[int], bool], begin: Callable[[Submission], None]) -> None:
        self._must_wait = must_wait
        self._begin = begin
        self._held: list[Submission] = []

    def __len__(self) -> int:
        return len(self._held)

    def come(self, submission: Submission) -> None:
        """It goes now, or stands in line: behind those that are as urgent, for ``HELD_FOR_S`` seconds at most."""
        priority = _priority(submission)
        if (self._held and _priority(self._held[0]) <= priority) or self._must_wait(priority):
            bisect.insort(self._held, submission, key=_priority)
            # The loop's clock alone says when: one that is asked again may be a little behind it.
            asyncio.get_running_loop().call_later(HELD_FOR_S, self._waited, submission)
        else:
            self._begin(submission)

    def changed(self) -> None:
        """An engine has said how it is: those go for whom there is room. Comes with every word of every engine."""
        while self._held and not self._must_wait(_priority(self._held[0])):
            self._begin(self._held.pop(0))

    def forget(self, submission: Submission) -> None:
        """Nobody cares about it any more."""
        if submission in self._held:
            self._held.remove(submission)

    def _waited(self, submission: Submission) -> None:
        if submission in self._held:
            self._held.remove(submission)
            self._begin(submission)


def _priority(submission: Submission) -> int:
    return submission.entry.priority
