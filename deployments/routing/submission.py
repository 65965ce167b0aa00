"""One sequence between its request and its engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cluster.api_errors import ApiError
from cluster.journal import JournalEntry
from cluster.outputs import TokenDelta
from cluster.replies import EngineLost, HandedOver, Moved, NotTaken
from cluster.routing.suspicion import Suspicion
from deployments.routing.token_streams import TokenStream


class Submission:
    """One sequence on its way: the journal entry, and who is told of its tokens.

    Attributes:
        entry: what was asked and delivered.
        deliver: called with each delta that is new, in order.
        fail: called once, instead of a last delta, when the sequence cannot be completed.
        stream: of the engine that the present attempt is known to be on.
        ahead: of the engine that was sent the present attempt before its call.
        place: the engine that keeps a place for the next attempt; empty if none does.
        call: of the present attempt, and its answer.
        is_admitted: a full queue does not refuse it any more. An engine that is lost had taken it, a client takes its answer up,
            it is one of several of a request, it came while there was no engine, or its client has the status.
        alone: no other sequence of this ingress was on that engine during the attempt.
        isolated: a suspect that is tried while no other suspect is.
        times_passed_over: how often an engine did not take it in time and it was sent to another.
        submitted_at: when it came, of ``time.monotonic``.
        lost_at: when the last attempt was lost, until the next token.
    """

    def __init__(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> None:
        self.entry = entry
        self.deliver = deliver
        self.fail = fail
        self.stream: TokenStream | None = None
        self.ahead: TokenStream | None = None
        self.place = ""
        self.call: tuple[Any, asyncio.Future] | None = None
        self.is_admitted = entry.attempt > 0
        self.task: asyncio.Task | None = None
        self.suspicion = Suspicion()
        self.isolated = False
        self.alone = True
        self.times_passed_over = 0
        self.submitted_at = time.monotonic()
        self.lost_at: float | None = None
        self.ended: asyncio.Future[EngineLost | HandedOver | Moved | NotTaken | None] = (
            asyncio.get_running_loop().create_future()
        )

    @property
    def is_troubled(self) -> bool:
        """An attempt was lost and no token came since, or not enough of them to be no suspect any more."""
        return self.lost_at is not None or self.suspicion.deaths > 0

    def end_attempt(self, lost: EngineLost | HandedOver | Moved | NotTaken | None) -> None:
        """The attempt is over: finished (None), lost, or to be continued elsewhere."""
        if not self.ended.done():
            self.ended.set_result(lost)
