"""One attempt to have a sequence completed: a call to an engine that stays pending until its last token."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeAlias

from ray.serve.handle import DeploymentHandle

from cluster.api_errors import ApiError, unavailable
from cluster.outputs import (
    FINISH_ABORT,
    FINISH_HANDOVER,
    FINISH_MOVE,
    FINISHES_ELSEWHERE,
    AttachRequired,
    GenerateReply,
    NotAdmitted,
    NotBegun,
)
from cluster.process.silence_clock import TICK_S, SilenceClock
from cluster.replies import EngineLost, FingerprintMismatch, HandedOver, Moved, NotTaken
from cluster.request import EngineRequest
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.routing.delivery import ABORTED
from deployments.routing.departures import Departures
from deployments.routing.engine_replies import reply_of
from deployments.routing.router.engine_choices import AVOID_SLOW_S, EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from deployments.routing.token_streams import TokenStreams

# While engines leave and others start, or there is none, a request waits this long for one that takes it.
ADMISSION_TIMEOUT_S = 300.0
_DELIVERY_TIMEOUT_S = 60.0
# An engine says that it has taken a request before it looks at it; one that has not for this share of the time in which silence
# counts as death is passed over.
_TAKING_SHARE = 1 / 3
# A request is passed on from engines that are slow, but heard of, this often; then it waits.
_MAX_PASSED_OVER = 2

# How an attempt ends, besides with the sequence: an error that is final, or what asks for another attempt.
Outcome: TypeAlias = (
    "ApiError | AttachRequired | NotAdmitted | EngineLost | HandedOver | Moved | NotTaken | FingerprintMismatch"
)


class Attempts:
    """Makes the attempts of one ingress."""

    def __init__(
        self,
        handle: DeploymentHandle,
        choices: EngineChoices,
        streams: TokenStreams,
        submissions: Submissions,
        departures: Departures,
        metrics: IngressMetrics,
        hang_timeout_s: float,
    ) -> None:
        self._handle = handle
        self._choices = choices
        self._streams = streams
        self._submissions = submissions
        self._departures = departures
        self._metrics = metrics
        self._taking_s = hang_timeout_s * _TAKING_SHARE
        choices.on_chosen = self._chosen

    async def make(self, submission: Submission, request: EngineRequest, last_resort: bool) -> Outcome | None:
        """Call an engine, and wait until the attempt is over; None if the sequence is finished.

        Args:
            last_resort: one that would rather not is to take it, too.
        """
        try:
            if submission.call is not None:
                # The one that it shares with others.
                outcome = await self._end_of(submission, request, *submission.call)
                if not isinstance(outcome, NotBegun):
                    return outcome
            if submission.ended.done():
                # Its engine, which it went ahead to, has said or shown that it does not run it.
                return submission.ended.result()
            if submission.ahead is None:
                self._choices.open(request.request_id, submission.place)
            submission.place = ""
            submission.call = self._call(submission, request, last_resort)
            outcome = await self._end_of(submission, request, *submission.call)
            assert not isinstance(outcome, NotBegun)  # a call that follows nothing
            return outcome
        finally:
            submission.call = None

    async def _end_of(
        self, submission: Submission, request: EngineRequest, call: Any, reply: asyncio.Future
    ) -> Outcome | NotBegun | None:
        given_up = await self._not_taken(submission, reply)
        if given_up is not None:
            call.cancel()
            return given_up
        await asyncio.wait((reply, submission.ended), return_when=asyncio.FIRST_COMPLETED)
        if reply.done() and not submission.ended.done():
            answered = await self._answered(submission, reply.result())
            if answered is not None:
                return answered
        lost = submission.ended.result()
        if lost is not None and not reply.done():
            if isinstance(lost, (HandedOver, Moved, NotAdmitted)):
                self._departures.begin((request.request_id, request.attempt), call, reply)
            else:
                call.cancel()
        return lost

    def begin_ahead(self, submission: Submission) -> bool:
        """Have the engine that is the best choice now begin the first attempt, whose call is to follow. Answers that have begun
        go with their calls alone. False if nothing was sent."""
        entry = submission.entry
        if entry.attempt:
            return False
        request = entry.engine_request()
        self._choices.open(entry.request_id)
        engine_id = self._choices.first_choice(request)
        if not engine_id or not self._send_ahead(submission, request, engine_id):
            return False
        entry.marks.setdefault("sent", time.time())
        submission.request = request
        self._choices.pin(entry.request_id, engine_id)
        self._choices.chose(request, engine_id)
        return True

    def note(self, submission: Submission, reply: asyncio.Future) -> None:
        """Note what ``reply`` says of the sequence, once it has come."""
        reply.add_done_callback(lambda reply: _note(reply, submission, self._metrics))

    def _call(self, submission: Submission, request: EngineRequest, last_resort: bool) -> tuple[Any, asyncio.Future]:
        submission.entry.marks.setdefault("sent", time.time())
        call = self._handle.generate.remote(request, submission.entry.fingerprint, last_resort)
        reply = asyncio.ensure_future(reply_of(call))
        self.note(submission, reply)
        return call, reply

    def _send_ahead(self, submission: Submission, request: EngineRequest, engine_id: str) -> bool:
        stream = self._streams.of(engine_id)
        if stream is None or self._choices.is_avoided(engine_id) or not stream.send(request):
            return False
        submission.ahead = stream
        return True

    def _chosen(self, request: EngineRequest, engine_id: str) -> None:
        """The router has chosen: have the engine begin while Serve's call goes its way, if it was not told before. What was
        refused once goes with the call alone."""
        submission = self._submissions.of(request.request_id)
        if submission is None or request.attempt != submission.entry.attempt:
            return
        ahead = submission.ahead
        if ahead is None:
            if not request.attempt:
                self._send_ahead(submission, request, engine_id)
        elif ahead.engine_id != engine_id:
            # That engine's replica did not take the call. Both would run the attempt, and their tokens need not be the same.
            ahead.abort(request.request_id, request.attempt)
            submission.end_attempt(NotTaken(ahead.engine_id))

    async def _answered(
        self, submission: Submission, reply: GenerateReply | Outcome | NotBegun
    ) -> Outcome | NotBegun | None:
        """The call was answered, and the token stream has yet to say how the attempt ends; None once it has."""
        if not isinstance(reply, GenerateReply):
            return reply
        # The runner forgets what it gives up: its last delta comes once or, if the stream broke meanwhile, never.
        if reply.finish_reason == FINISH_HANDOVER:
            return HandedOver(reply.engine_id)
        if reply.finish_reason == FINISH_MOVE:
            return Moved(reply.engine_id)
        if reply.finish_reason == FINISH_ABORT:
            return EngineLost(reply.engine_id, ABORTED)
        if submission.stream is None:
            # Nothing came on the stream yet: if it breaks for good, nothing will.
            stream = self._streams.of(reply.engine_id)
            if stream is None:
                return EngineLost(reply.engine_id, "the engine was gone before its tokens arrived", died=True)
            self._submissions.place(submission, stream)
        await asyncio.wait((submission.ended,), timeout=_DELIVERY_TIMEOUT_S)
        if not submission.ended.done():
            return EngineLost("", f"only {submission.entry.next_index} of {reply.num_tokens} tokens arrived")
        return None

    async def _not_taken(self, submission: Submission, reply: asyncio.Future) -> NotTaken | ApiError | None:
        """Wait until an engine has taken the request or the attempt is over (None); else why not to wait any longer."""
        clock, engine_id = SilenceClock(), ""
        while submission.stream is None:
            without_s = min(self._choices.seconds_without(), time.monotonic() - submission.submitted_at)
            if without_s > ADMISSION_TIMEOUT_S:
                # Serve's router would wait for ever, and a suspect keep all other suspects waiting.
                return unavailable(f"there was no engine for {without_s:.0f} s")
            done, _ = await asyncio.wait((reply, submission.ended), timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return None
            if engine_id != self._choices.chosen(submission.entry.request_id):
                engine_id = self._choices.chosen(submission.entry.request_id)
                clock.heard()
            late = clock.tick() > self._taking_s and submission.stream is None
            if late and engine_id and self._may_pass_over(submission, engine_id):
                submission.times_passed_over += 1
                self._choices.avoid(engine_id, AVOID_SLOW_S)
                stream = self._streams.of(engine_id)
                if stream is not None:
                    stream.abort(submission.entry.request_id, submission.entry.attempt)
                return NotTaken(engine_id)
        return None

    def _may_pass_over(self, submission: Submission, engine_id: str) -> bool:
        stream = self._streams.of(engine_id)
        silent = stream is not None and stream.silent
        may = silent or submission.times_passed_over < _MAX_PASSED_OVER
        return may and self._choices.has_other(engine_id, submission.entry.fingerprint)


def _note(reply: asyncio.Future, submission: Submission, metrics: IngressMetrics) -> None:
    """What an engine says of a request's way; of the first attempt that had a token."""
    entry = submission.entry
    answered = None if reply.cancelled() or reply.exception() is not None else reply.result()
    if isinstance(answered, GenerateReply):
        entry.engine_id = answered.engine_id
        if answered.marks and "first_step" not in entry.marks:
            entry.marks.update(answered.marks)
            if {
                "scheduled",
                "first_step",
            } <= answered.marks.keys() and answered.finish_reason not in FINISHES_ELSEWHERE:
                ended = submission.finished_at or time.time()
                metrics.observe_engine(answered.marks["scheduled"], answered.marks["first_step"], ended)
