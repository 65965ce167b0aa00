"""One sequence between its request and its engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from cluster.api_errors import ApiError
from cluster.journal import JournalEntry
from cluster.outputs import NotAdmitted, TokenDelta
from cluster.replies import EngineLost, HandedOver, Moved, NotTaken
from cluster.request import EngineRequest
from cluster.routing.suspicion import Suspicion
from deployments.routing.token_streams import TokenStream

# How an attempt ends that its call says nothing of; None: with the sequence.
AttemptEnd: TypeAlias = "EngineLost | HandedOver | Moved | NotAdmitted | NotTaken | None"


class Submission:
    """One sequence on its way: the journal entry, and who is told of its tokens.

    Attributes:
        entry: what was asked and delivered.
        deliver: called with each delta that is new, in order.
        deliver_token: called instead with the index of a token, and the token, if nothing else is said of it.
        fail: called once, instead of a last delta, when the sequence cannot be completed.
        stream: of the engine that the present attempt is known to be on.
        ahead: of the engine that was sent the present attempt before its call.
        request: the first attempt, as an engine was sent it before its call; None if it went with the call alone.
        place: the engine that keeps a place for the next attempt; empty if none does.
        call: of the present attempt, and its answer.
        is_admitted: a full queue does not refuse it any more. An engine that is lost had taken it, a client takes its answer up,
            it is one of several of a request, it waited while there was no engine, or its client has the status.
        alone: no other sequence of this ingress was on that engine during the attempt.
        isolated: a suspect that is tried while no other suspect is.
        times_passed_over: how often an engine did not take it in time and it was sent to another.
        submitted_at: when it came, of ``time.monotonic``.
        lost_at: when the last attempt was lost, until the next token.
        finished_at: when its last token came, seconds since 1970; None before.
    """

    def __init__(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> None:
        self.entry = entry
        self.deliver = deliver
        self.deliver_token: Callable[[int, int], None] = self._deliver_as_delta
        self.fail = fail
        self.stream: TokenStream | None = None
        self.ahead: TokenStream | None = None
        self.request: EngineRequest | None = None
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
        self.finished_at: float | None = None
        self.ended: asyncio.Future[AttemptEnd] = asyncio.get_running_loop().create_future()

    @property
    def is_troubled(self) -> bool:
        """An attempt was lost and no token came since, or not enough of them to be no suspect any more."""
        return self.lost_at is not None or self.suspicion.deaths > 0

    def _deliver_as_delta(self, index: int, token: int) -> None:
        self.deliver(TokenDelta(self.entry.request_id, self.entry.attempt, index, [token]))

    def abort(self) -> None:
        """Have the engine give up the present attempt, if one has it or was sent it."""
        if (stream := self.stream or self.ahead) is not None:
            stream.abort(self.entry.request_id, self.entry.attempt)

    def end_attempt(self, lost: AttemptEnd) -> None:
        """The attempt is over: finished (None), lost, or to be continued elsewhere."""
        if not self.ended.done():
            self.finished_at = time.time() if lost is None else None
            self.ended.set_result(lost)
