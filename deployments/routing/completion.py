"""From attempt to attempt until a sequence is finished or cannot be: what follows on each way in which an attempt ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cluster.api_errors import ApiError, unavailable
from cluster.outputs import AttachRequired, NotAdmitted
from cluster.replies import EngineLost, FingerprintMismatch, HandedOver, Moved, NotTaken
from cluster.request import EngineRequest
from cluster.routing.suspicion import Verdict
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.request_events import ATTEMPTS, HANDOVERS, MOVES, QUARANTINED, RequestEvents
from deployments.routing.attempts import ADMISSION_TIMEOUT_S, Attempts
from deployments.routing.balancer import Balancer
from deployments.routing.engine_replies import gave_up
from deployments.routing.router.engine_choices import AVOID_DEAD_S, AVOID_REFUSING_S, AVOID_SLOW_S, EngineChoices
from deployments.routing.router.engine_rooms import EngineRooms
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from deployments.routing.token_streams import TokenStreams

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_ATTACH_POLL_S = 0.005
_MAX_ATTACH_POLLS = 8
_REFUSAL_BACKOFF_S = 0.05
_MAX_REFUSAL_BACKOFF_S = 0.5
_REFUSALS_BEFORE_LAST_RESORT = 4


@dataclass(slots=True)
class _Tries:
    """What has been tried for one sequence.

    Attributes:
        request: of the next attempt.
        progress: tokens that it had at its last failure.
        failures: since it made progress last.
        polls: of an engine whose token stream is being opened.
        refusals: by engines that take nothing new, one after the other; ``refused_since`` is when the first came.
        times_full: queues were full, one after the other.
        last_resort: an engine that would rather not is to take it, too.
    """

    request: EngineRequest
    progress: int
    failures: int = 0
    polls: int = 0
    refusals: int = 0
    refused_since: float = 0.0
    times_full: int = 0
    last_resort: bool = False

    def was_taken(self) -> None:
        """An engine took it, or would have."""
        self.refusals, self.times_full, self.last_resort = 0, 0, False


class Completion:
    """Completes the sequences of one ingress."""

    def __init__(
        self,
        attempts: Attempts,
        choices: EngineChoices,
        streams: TokenStreams,
        submissions: Submissions,
        rooms: EngineRooms,
        balancer: Balancer,
        events: RequestEvents,
        metrics: IngressMetrics,
        max_attempts: int,
    ) -> None:
        self._attempts = attempts
        self._choices = choices
        self._streams = streams
        self._submissions = submissions
        self._rooms = rooms
        self._balancer = balancer
        self._events = events
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._after: dict[type, Callable[[Submission, _Tries, Any], Awaitable[ApiError | None]]] = {
            ApiError: self._after_error,
            AttachRequired: self._after_attach_required,
            NotAdmitted: self._after_not_admitted,
            Moved: self._after_move,
            HandedOver: self._after_handover,
            NotTaken: self._after_handover,
            FingerprintMismatch: self._after_mismatch,
            EngineLost: self._after_loss,
        }

    async def run(self, submission: Submission) -> ApiError | None:
        """Submit until the sequence is finished (None) or cannot be (the error)."""
        entry = submission.entry
        tries = _Tries(submission.request or entry.engine_request(), entry.next_index)
        while True:
            if submission.suspicion.must_isolate:
                await self._submissions.isolate(submission)
            submission.is_admitted = submission.is_admitted or self._rooms.is_held(submission)
            outcome = await self._attempts.make(submission, tries.request, tries.last_resort)
            if outcome is None or entry.finished:
                # The last tokens of an engine that was given up may have come before this task went on.
                return None
            error = await self._after[type(outcome)](submission, tries, outcome)
            if error is not None:
                return error

    async def _after_error(self, submission: Submission, tries: _Tries, error: ApiError) -> ApiError | None:
        # Its call may have waited in Serve's router while the last engine went and another one came.
        submission.is_admitted = submission.is_admitted or self._rooms.is_held(submission)
        if error.status != 429 or not submission.is_admitted:
            return error
        # What was taken once is not refused for want of room: it waits for some.
        self._choices.avoid(self._choices.chosen(submission.entry.request_id), AVOID_REFUSING_S)
        submission.abort()
        self._begin_attempt(submission, tries)
        tries.times_full += 1
        await _pause(_REFUSAL_BACKOFF_S, tries.times_full, _MAX_REFUSAL_BACKOFF_S)
        await self._rooms.wait()
        return None

    async def _after_attach_required(
        self, submission: Submission, tries: _Tries, outcome: AttachRequired
    ) -> ApiError | None:
        opened = self._streams.attach(outcome)
        tries.polls = 1 if opened else tries.polls + 1
        if tries.polls <= _MAX_ATTACH_POLLS:
            # The stream and this call reach the engine on different ways; give the stream a head start.
            await asyncio.sleep(_ATTACH_POLL_S * 2 ** (tries.polls - 1))
            return None
        tries.polls = 0
        lost = EngineLost(outcome.engine_id, "the token stream could not be attached")
        return await self._after_loss(submission, tries, lost)

    async def _after_not_admitted(self, submission: Submission, tries: _Tries, outcome: NotAdmitted) -> ApiError | None:
        self._choices.avoid(outcome.engine_id, AVOID_REFUSING_S)
        if not tries.refusals:
            tries.refused_since = time.monotonic()
        tries.refusals += 1
        if time.monotonic() - tries.refused_since > ADMISSION_TIMEOUT_S:
            return unavailable(f"no engine took the request: {outcome.message}")
        tries.last_resort = outcome.last_resort and tries.refusals >= _REFUSALS_BEFORE_LAST_RESORT
        if submission.ahead is not None:
            # Its replica refuses what its runner may have begun.
            if submission.stream is not None:
                submission.is_admitted = True
                self._choices.left_engine(submission.entry.request_id)
            submission.abort()
            self._begin_attempt(submission, tries)
        await _pause(_REFUSAL_BACKOFF_S, tries.refusals, _MAX_REFUSAL_BACKOFF_S)
        return None

    async def _after_move(self, submission: Submission, tries: _Tries, outcome: Moved) -> None:
        tries.was_taken()
        submission.is_admitted = True
        self._choices.left_engine(submission.entry.request_id)
        submission.place, number = self._balancer.target(outcome.engine_id)
        self._events.count(MOVES)
        self._begin_attempt(submission, tries)
        tries.request.place = number

    async def _after_handover(self, submission: Submission, tries: _Tries, outcome: HandedOver | NotTaken) -> None:
        tries.was_taken()
        self._next_attempt(submission, tries, outcome)

    async def _after_mismatch(
        self, submission: Submission, tries: _Tries, outcome: FingerprintMismatch
    ) -> ApiError | None:
        tries.was_taken()
        return await self._after_failure(submission, tries, outcome)

    async def _after_loss(self, submission: Submission, tries: _Tries, outcome: EngineLost) -> ApiError | None:
        tries.was_taken()
        chosen = self._choices.chosen(submission.entry.request_id)
        if not outcome.engine_id:
            # The call failed: Ray may not know yet that the engine died with its node.
            self._choices.avoid(chosen, AVOID_SLOW_S)
        if outcome.died:
            self._choices.avoid(outcome.engine_id or chosen, AVOID_DEAD_S)
            if self._convicts(submission):
                return self._quarantine(submission, outcome)
        self._next_attempt(submission, tries, outcome)
        return await self._after_failure(submission, tries, outcome)

    async def _after_failure(
        self, submission: Submission, tries: _Tries, outcome: EngineLost | FingerprintMismatch
    ) -> ApiError | None:
        entry = submission.entry
        tries.failures = tries.failures + 1 if entry.next_index == tries.progress else 1
        tries.progress = entry.next_index
        if tries.failures >= self._max_attempts:
            return gave_up(entry.fingerprint, outcome, tries.failures)
        if tries.failures > 1 or not isinstance(outcome, EngineLost) or not outcome.died:
            # Only after a first death another engine is asked at once.
            await _pause(_FIRST_BACKOFF_S, tries.failures, _MAX_BACKOFF_S)
        return None

    def _convicts(self, submission: Submission) -> bool:
        """Count the death of the engine under ``submission``; True if it is to blame. Nearby or queued elsewhere it is not."""
        if submission.stream is None or self._submissions.shares_with_isolated(submission):
            return False
        verdict = submission.suspicion.engine_died(submission.entry.next_index, submission.alone, submission.isolated)
        return verdict is Verdict.QUARANTINE

    def _quarantine(self, submission: Submission, outcome: EngineLost) -> ApiError:
        entry, deaths = submission.entry, submission.suspicion.deaths
        self._events.record(
            QUARANTINED, entry.request_id, engine=outcome.engine_id, deaths=deaths, tokens=entry.next_index
        )
        return ApiError(
            500,
            f"{deaths} engines went down while they ran this request, which is refused now so that others are served; "
            f"the last one ended with: {outcome.message}",
            code="request_quarantined",
        )

    def _next_attempt(self, submission: Submission, tries: _Tries, outcome: EngineLost | HandedOver | NotTaken) -> None:
        entry = submission.entry
        if submission.stream is not None or isinstance(outcome, HandedOver):
            submission.is_admitted = True
            self._choices.left_engine(entry.request_id)
        submission.abort()
        submission.lost_at = submission.lost_at or time.monotonic()
        details = {"engine": outcome.engine_id, "attempt": entry.attempt + 1, "tokens": entry.next_index}
        if isinstance(outcome, HandedOver):
            self._events.record(HANDOVERS, entry.request_id, **details)
        else:
            cause = "engine_died" if isinstance(outcome, EngineLost) and outcome.died else "attempt_lost"
            self._metrics.count_attempt(outcome)
            self._events.record(ATTEMPTS, entry.request_id, cause=cause, **details, why=outcome.message)
        self._begin_attempt(submission, tries)

    def _begin_attempt(self, submission: Submission, tries: _Tries) -> None:
        self._submissions.displace(submission)
        tries.request = submission.entry.resume_request()


async def _pause(first_s: float, count: int, longest_s: float) -> None:
    """Back off: twice as long each time, with some randomness so that many do not come back at once."""
    await asyncio.sleep(min(first_s * 2 ** min(count - 1, 16), longest_s) * random.uniform(0.5, 1.0))
