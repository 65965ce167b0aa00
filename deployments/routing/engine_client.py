"""The ingress's side of the engines: submits sequences, follows their tokens, and carries them over when an engine dies."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.api_errors import ApiError, unavailable
from cluster.journal import JournalEntry, RequestJournal
from cluster.logs import log_fields
from cluster.outputs import (
    ENGINE_LEAVES,
    FINISH_ABORT,
    FINISH_HANDOVER,
    AttachRequired,
    EngineRoom,
    GenerateReply,
    NotAdmitted,
    TokenDelta,
)
from cluster.replies import EngineLost, FingerprintMismatch, HandedOver, NotTaken
from cluster.request import EngineRequest
from cluster.silence_clock import TICK_S, SilenceClock
from cluster.suspicion import Verdict
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.request_events import (
    ATTEMPTS,
    DRAINED,
    FENCED,
    HANDOVERS,
    QUARANTINED,
    SILENT_ENGINES,
    RequestEvents,
)
from deployments.routing.admission import num_booked_for, refusal, share_refusal
from deployments.routing.departures import Departures
from deployments.routing.early_streams import keep_attached
from deployments.routing.engine_choices import AVOID_DEAD_S, AVOID_REFUSING_S, AVOID_SLOW_S, EngineChoices
from deployments.routing.engine_replies import gave_up, reply_of
from deployments.routing.place_line import PlaceLine
from deployments.routing.submission import Submission
from deployments.routing.token_streams import TokenStream, TokenStreams

logger = logging.getLogger("ray.serve")

_ABORTED = "the engine aborted the request"
_DELIVERY_TIMEOUT_S = 60.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_ATTACH_POLL_S = 0.005
_MAX_ATTACH_POLLS = 8
_REFUSAL_BACKOFF_S = 0.05
_MAX_REFUSAL_BACKOFF_S = 0.5
_REFUSALS_BEFORE_LAST_RESORT = 4
# An engine says that it has taken a request before it looks at it; one that has not for this share of the time in which silence
# counts as death is passed over.
_TAKING_SHARE = 1 / 3
# A request is passed on from engines that are slow, but heard of, this often; then it waits.
_MAX_PASSED_OVER = 2
# While engines leave and others start, or there is none, a request waits this long for one that takes it.
_ADMISSION_TIMEOUT_S = 300.0


# While there is no engine at all, as many requests wait for one as so many take.
_ENGINES_EXPECTED = 2
_UNBOUNDED = EngineRoom(2**20, 2**20)


class EngineClient:
    """Runs sequences on the engine deployment behind ``handle``; every method belongs to one event loop.

    Args:
        choices: of the engines of that deployment.
        idle_room: what an engine takes that has nothing to do; one that has yet to speak counts for such.
        max_queue_share: of the engines' queues, what the sequences of one tenant may hold.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        choices: EngineChoices,
        max_attempts: int,
        hang_timeout_s: float = 3.0,
        idle_room: EngineRoom = _UNBOUNDED,
        max_queue_share: float = 1.0,
    ) -> None:
        self.events = RequestEvents()
        self.choices = choices
        self._handle = handle
        self._isolation = asyncio.Lock()
        self._max_attempts = max_attempts
        self._taking_s = hang_timeout_s * _TAKING_SHARE
        self.metrics = IngressMetrics()
        self._journal = RequestJournal()
        self._submissions: dict[str, Submission] = {}
        self._unplaced: set[Submission] = set()  # that no engine is known to have
        self._line = PlaceLine()
        self._idle_room = idle_room
        self._max_queue_share = max_queue_share
        self._departures = Departures()
        self._attaching: asyncio.Task | None = None
        self.subscriber = f"ingress-{uuid.uuid4().hex[:16]}"
        self._streams = TokenStreams(
            self.subscriber,
            choices,
            self._on_deltas,
            self._journal.resume_indices,
            self._on_engine_lost,
            hang_timeout_s,
        )

    def attach_early(self, find_runner: Callable[[str], Any]) -> None:
        """Open token streams to engines before they are needed; see ``keep_attached``."""
        self._attaching = asyncio.get_running_loop().create_task(
            keep_attached(self._streams, self.choices, find_runner)
        )

    @property
    def num_running(self) -> int:
        """Sequences that are not finished."""
        return len(self._submissions)

    @property
    def streams(self) -> list[TokenStream]:
        """The engines that this ingress is attached to."""
        return list(self._streams)

    def check_room(self, num_sequences: int, tenant: str = "") -> None:
        """Raise ApiError 429 if the engines do not take so many now, or not of this tenant. Those that are submitted at once have
        their places. A look that changes nothing, so another thread may ask, too."""
        streams = self._usable_streams()
        ends_per_s = sum(stream.ends.per_s for stream in streams if stream is not None)
        rooms = self._rooms(streams) or [self._idle_room] * _ENGINES_EXPECTED
        num_booked, refused = len(self._unplaced), None
        if tenant:
            live = list(self._submissions.values())
            unplaced = Counter(submission.entry.tenant for submission in list(self._unplaced))
            to_begin = Counter(submission.entry.tenant for submission in live if submission.entry.next_index == 0)
            num_slots = len(rooms) * (self._idle_room.free - self._idle_room.max_queued)
            free_slots = max(0, num_slots - (len(live) - to_begin.total()))
            refused = share_refusal(to_begin[tenant], num_sequences, rooms, free_slots, self._max_queue_share)
            if refused is None and num_sequences == 1 and streams:
                # The engine knows exactly. What is announced counts what other keys have sent beyond their shares.
                return
            num_booked = num_booked_for(tenant, unplaced, to_begin - unplaced, rooms, self._max_queue_share)
        refused = refused or refusal(rooms, num_booked, num_sequences, ends_per_s)
        if refused is not None:
            raise refused

    def _usable_streams(self) -> list[TokenStream | None]:
        """One an engine that may be chosen; None if there is no stream yet."""
        found = []
        for engine_id in self.choices.engines:
            stream = self._streams.of(engine_id)
            if not (self.choices.is_avoided(engine_id) if stream is None else stream.leaves or stream.silent):
                found.append(stream)
        return found

    def _rooms(self, streams: Sequence[TokenStream | None]) -> list[EngineRoom]:
        return [self._idle_room if stream is None else stream.room or self._idle_room for stream in streams]

    def _num_free(self) -> int:
        """Room for those who wait in line; below 0 if those on their way are more than it."""
        free = sum(room.free for room in self._rooms(self._usable_streams()))
        return free - (len(self._unplaced) - len(self._line))

    def submit(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> Submission:
        """Start a sequence. The callbacks run in this event loop, never after ``cancel``."""
        submission = Submission(entry, deliver, fail)
        self._journal.open(entry)
        self._submissions[entry.request_id] = submission
        self._unplaced.add(submission)
        # Of no HTTP request: Serve would cancel the calls of one whose client has gone, and a cancelled call is a lost attempt.
        submission.task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._run(submission))
        return submission

    def cancel(self, submission: Submission) -> None:
        """Stop caring about a sequence; its engine frees it at once. Safe to call at any time."""
        was_sent = bool(self.choices.chosen(submission.entry.request_id))
        self._forget(submission)
        self._leave_isolation(submission)
        if submission.task is None or submission.task.done():
            return
        submission.task.cancel()
        if submission.entry.finished:
            return
        key = submission.entry.request_id, submission.entry.attempt
        if submission.call is not None and not submission.call[1].done():
            if was_sent:
                self._departures.begin(key, *submission.call)
            else:
                submission.call[0].cancel()
        if submission.stream is not None:
            submission.stream.abort(*key)

    async def close(self) -> None:
        """Cancel everything and detach."""
        if self._attaching is not None:
            self._attaching.cancel()
        for submission in list(self._submissions.values()):
            self.cancel(submission)
        await self._departures.close()
        await self._streams.close()

    def _forget(self, submission: Submission) -> None:
        self._submissions.pop(submission.entry.request_id, None)
        self._journal.close(submission.entry.request_id)
        self._unplaced.discard(submission)
        self.choices.close(submission.entry.request_id)

    def _on_deltas(self, stream: TokenStream, deltas: Sequence[TokenDelta]) -> None:
        for delta in deltas:
            if not delta.request_id:
                self._on_engine_word(stream, delta)
                continue
            submission = self._submissions.get(delta.request_id)
            if delta.is_first_word and (delta.request_id, delta.attempt) in self._departures:
                stream.abort(delta.request_id, delta.attempt)
                continue
            if submission is None or delta.attempt != submission.entry.attempt:
                if submission is not None and delta.token_ids:
                    self.events.count(FENCED)
                if stream.unwanted(delta):
                    what = log_fields(request=delta.request_id, engine=stream.engine_id, attempt=delta.attempt)
                    logger.warning("event=aborted_again %s index=%d: its tokens still came", what, delta.index)
                continue
            # An engine that gave up on its own account does not end the request; another attempt does.
            aborted = delta.finish_reason in (FINISH_ABORT, FINISH_HANDOVER)
            new = submission.entry.accept(delta._replace(finish_reason=None) if aborted else delta)
            if submission.stream is not stream:
                self._arrived(submission, stream)
            if new is not None:
                submission.entry.fingerprint = stream.fingerprint
                if submission.lost_at is not None and new.token_ids:
                    self.events.recovered(delta.request_id, time.monotonic() - submission.lost_at)
                    submission.lost_at = None
                if submission.suspicion.progressed(submission.entry.next_index):
                    self._leave_isolation(submission)
                submission.deliver(new)
                if new.finish_reason is not None:
                    self._forget(submission)
                    submission.end_attempt(None)
            if delta.finish_reason == FINISH_HANDOVER:
                submission.end_attempt(HandedOver(stream.engine_id))
            elif aborted:
                submission.end_attempt(EngineLost(stream.engine_id, _ABORTED))

    def _on_engine_word(self, stream: TokenStream, word: TokenDelta) -> None:
        """Of the engine itself."""
        room = EngineRoom.of(word)
        if room is not None:
            stream.announced(room)
            self.choices.announced(stream.engine_id, room.num_tokens)
            if len(self._line):
                self._line.go(self._num_free())
        elif word == ENGINE_LEAVES:
            stream.leaves = True
            self.choices.avoid(stream.engine_id, AVOID_DEAD_S)
            self.events.record(DRAINED, "-", engine=stream.engine_id)

    def _on_engine_lost(self, stream: TokenStream, why: str) -> None:
        self.choices.avoid(stream.engine_id, AVOID_DEAD_S)
        if stream.alive:
            self.events.record(SILENT_ENGINES, "-", engine=stream.engine_id)
        for submission in list(self._submissions.values()):
            if submission.stream is stream:
                submission.end_attempt(EngineLost(stream.engine_id, why, died=True))

    def _arrived(self, submission: Submission, stream: TokenStream) -> None:
        """The engine behind ``stream`` has taken the sequence."""
        self.choices.trust(stream.engine_id)
        self.choices.took(submission.entry.request_id)
        others = [other for other in self._submissions.values() if other.stream is stream]
        for other in others:
            other.alone = False
        submission.stream, submission.alone = stream, not others
        self._unplaced.discard(submission)
        if submission.lost_at is not None:
            entry, waited_s = submission.entry, time.monotonic() - submission.lost_at
            what = log_fields(request=entry.request_id, engine=stream.engine_id, attempt=entry.attempt)
            logger.info("event=taken %s seconds=%.2f", what, waited_s)

    def _shares_with_isolated(self, submission: Submission) -> bool:
        return any(
            other.isolated and other is not submission and other.stream is submission.stream
            for other in self._submissions.values()
        )

    def _leave_isolation(self, submission: Submission) -> None:
        if submission.isolated:
            submission.isolated = False
            self._isolation.release()

    async def _run(self, submission: Submission) -> None:
        try:
            error = await self._complete(submission)
        except Exception as unexpected:
            logger.exception("request %s failed", submission.entry.request_id)
            error = ApiError(500, f"internal error: {type(unexpected).__name__}", code="internal_error")
        self._leave_isolation(submission)
        if error is not None:
            self._forget(submission)
            submission.fail(error)

    async def _complete(self, submission: Submission) -> ApiError | None:
        """Submit until the sequence is finished (None) or cannot be (the error)."""
        entry = submission.entry
        request, failures, polls, refusals, times_full = entry.engine_request(), 0, 0, 0, 0
        last_resort, waiting_since, progress = False, 0.0, entry.next_index
        while True:
            if submission.suspicion.must_isolate and not submission.isolated:
                await self._isolation.acquire()
                submission.isolated = True
            outcome = await self._attempt(submission, request, last_resort)
            if entry.finished:
                # The last tokens of an engine that was given up came before this task went on.
                return None
            if isinstance(outcome, ApiError) and outcome.status == 429 and submission.is_admitted:
                # What was taken once is not refused for want of room: it waits for some.
                self.choices.avoid(self.choices.chosen(entry.request_id), AVOID_REFUSING_S)
                request = self._begin_attempt(submission)
                times_full += 1
                await _pause(_REFUSAL_BACKOFF_S, times_full, _MAX_REFUSAL_BACKOFF_S)
                if self._num_free() < 0:
                    await self._line.wait()
                continue
            if outcome is None or isinstance(outcome, ApiError):
                return outcome
            if isinstance(outcome, AttachRequired):
                opened = self._streams.attach(outcome)
                polls = 1 if opened else polls + 1
                if polls <= _MAX_ATTACH_POLLS:
                    # The stream and this call reach the engine on different ways; give the stream a head start.
                    await asyncio.sleep(_ATTACH_POLL_S * 2 ** (polls - 1))
                    continue
                polls = 0
                outcome = EngineLost(outcome.engine_id, "the token stream could not be attached")
            if isinstance(outcome, NotAdmitted):
                self.choices.avoid(outcome.engine_id, AVOID_REFUSING_S)
                waiting_since = waiting_since if refusals else time.monotonic()
                refusals += 1
                if time.monotonic() - waiting_since > _ADMISSION_TIMEOUT_S:
                    return unavailable(f"no engine took the request: {outcome.message}")
                last_resort = outcome.last_resort and refusals >= _REFUSALS_BEFORE_LAST_RESORT
                await _pause(_REFUSAL_BACKOFF_S, refusals, _MAX_REFUSAL_BACKOFF_S)
                continue
            refusals, times_full, last_resort = 0, 0, False
            if isinstance(outcome, EngineLost) and not outcome.engine_id:
                # The call failed: Ray may not know yet that the engine died with its node.
                self.choices.avoid(self.choices.chosen(entry.request_id), AVOID_SLOW_S)
            if isinstance(outcome, EngineLost) and outcome.died:
                self.choices.avoid(outcome.engine_id or self.choices.chosen(entry.request_id), AVOID_DEAD_S)
                if self._convicts(submission):
                    return self._quarantine(submission, outcome)
            if not isinstance(outcome, FingerprintMismatch):
                request = self._next_attempt(submission, outcome)
            if isinstance(outcome, (HandedOver, NotTaken)):
                continue
            failures = failures + 1 if entry.next_index == progress else 1
            progress = entry.next_index
            if failures >= self._max_attempts:
                return gave_up(entry.fingerprint, outcome, failures)
            if failures > 1 or not isinstance(outcome, EngineLost) or not outcome.died:
                # Only after a first death another engine is asked at once.
                await _pause(_FIRST_BACKOFF_S, failures, _MAX_BACKOFF_S)

    def _convicts(self, submission: Submission) -> bool:
        """Count the death of the engine under ``submission``; True if it is to blame. Nearby or queued elsewhere it is not."""
        if submission.stream is None or self._shares_with_isolated(submission):
            return False
        verdict = submission.suspicion.engine_died(submission.entry.next_index, submission.alone, submission.isolated)
        return verdict is Verdict.QUARANTINE

    def _quarantine(self, submission: Submission, outcome: EngineLost) -> ApiError:
        entry, deaths = submission.entry, submission.suspicion.deaths
        self.events.record(
            QUARANTINED, entry.request_id, engine=outcome.engine_id, deaths=deaths, tokens=entry.next_index
        )
        return ApiError(
            500,
            f"{deaths} engines went down while they ran this request, which is refused now so that others are served; "
            f"the last one ended with: {outcome.message}",
            code="request_quarantined",
        )

    def _next_attempt(self, submission: Submission, outcome: EngineLost | HandedOver | NotTaken) -> EngineRequest:
        entry = submission.entry
        if submission.stream is not None:
            submission.is_admitted = True
            submission.stream.abort(entry.request_id, entry.attempt)
        submission.lost_at = submission.lost_at or time.monotonic()
        details = {"engine": outcome.engine_id, "attempt": entry.attempt + 1, "tokens": entry.next_index}
        if isinstance(outcome, HandedOver):
            self.events.record(HANDOVERS, entry.request_id, **details)
        else:
            cause = "engine_died" if isinstance(outcome, EngineLost) and outcome.died else "attempt_lost"
            self.metrics.count_attempt(outcome)
            self.events.record(ATTEMPTS, entry.request_id, cause=cause, **details, why=outcome.message)
        return self._begin_attempt(submission)

    def _begin_attempt(self, submission: Submission) -> EngineRequest:
        """The next attempt; no engine is known to have it."""
        submission.stream = None
        self._unplaced.add(submission)
        submission.ended = asyncio.get_running_loop().create_future()
        return submission.entry.resume_request()

    async def _attempt(self, submission: Submission, request: EngineRequest, last_resort: bool):
        """One pending call; returns None (finished), an ApiError (final), or a reply that asks for another try."""
        self.choices.open(request.request_id)
        call = self._handle.generate.remote(request, submission.entry.fingerprint, last_resort)
        reply = asyncio.ensure_future(reply_of(call))
        submission.call = call, reply
        given_up = await self._not_taken(submission, reply)
        if given_up is not None:
            call.cancel()
            return given_up
        await asyncio.wait((reply, submission.ended), return_when=asyncio.FIRST_COMPLETED)
        if reply.done() and not submission.ended.done():
            outcome = reply.result()
            if not isinstance(outcome, GenerateReply):
                return outcome
            # The runner forgets what it gives up: its last delta comes once or, if the stream broke meanwhile, never.
            if outcome.finish_reason == FINISH_HANDOVER:
                return HandedOver(outcome.engine_id)
            if outcome.finish_reason == FINISH_ABORT:
                return EngineLost(outcome.engine_id, _ABORTED)
            if submission.stream is None:
                # Nothing came on the stream yet: if it breaks for good, nothing will.
                stream = self._streams.of(outcome.engine_id)
                if stream is None:
                    return EngineLost(outcome.engine_id, "the engine was gone before its tokens arrived", died=True)
                self._arrived(submission, stream)
            await asyncio.wait((submission.ended,), timeout=_DELIVERY_TIMEOUT_S)
            if not submission.ended.done():
                return EngineLost("", f"only {submission.entry.next_index} of {outcome.num_tokens} tokens arrived")
        lost = submission.ended.result()
        if lost is not None and not reply.done():
            if isinstance(lost, HandedOver):
                self._departures.begin((request.request_id, request.attempt), call, reply)
            else:
                call.cancel()
        return lost

    async def _not_taken(self, submission: Submission, reply: asyncio.Future) -> NotTaken | ApiError | None:
        """Wait until an engine has taken the request or the attempt is over (None); else why not to wait any longer."""
        clock, engine_id = SilenceClock(), ""
        while submission.stream is None:
            without_s = min(self.choices.seconds_without(), time.monotonic() - submission.submitted_at)
            if without_s > _ADMISSION_TIMEOUT_S:
                # Serve's router would wait for ever, and a suspect keep all other suspects waiting.
                return unavailable(f"there was no engine for {without_s:.0f} s")
            done, _ = await asyncio.wait((reply, submission.ended), timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return None
            if engine_id != self.choices.chosen(submission.entry.request_id):
                engine_id = self.choices.chosen(submission.entry.request_id)
                clock.heard()
            late = clock.tick() > self._taking_s and submission.stream is None
            if late and engine_id and self._may_pass_over(submission, engine_id):
                submission.times_passed_over += 1
                self.choices.avoid(engine_id, AVOID_SLOW_S)
                stream = self._streams.of(engine_id)
                if stream is not None:
                    stream.abort(submission.entry.request_id, submission.entry.attempt)
                return NotTaken(engine_id)
        return None

    def _may_pass_over(self, submission: Submission, engine_id: str) -> bool:
        stream = self._streams.of(engine_id)
        silent = stream is not None and stream.silent
        may = silent or submission.times_passed_over < _MAX_PASSED_OVER
        return may and self.choices.has_other(engine_id, submission.entry.fingerprint)


async def _pause(first_s: float, count: int, longest_s: float) -> None:
    """Back off: twice as long each time, with some randomness so that many do not come back at once."""
    await asyncio.sleep(min(first_s * 2 ** min(count - 1, 16), longest_s) * random.uniform(0.5, 1.0))
