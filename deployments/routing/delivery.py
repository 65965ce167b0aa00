"""What an engine says about a sequence, on its way to whoever asked: each token once, and only of the present attempt."""

from __future__ import annotations

import logging
import time

from cluster.journal import JournalGapError
from cluster.outputs import FINISH_HANDOVER, FINISH_MOVE, FINISHES_ELSEWHERE, NotAdmitted, PlainTokens, TokenDelta
from cluster.process.logs import log_fields
from cluster.replies import EngineLost, HandedOver, Moved
from cluster.routing.fingerprint import of_answer
from deployments.metrics.request_events import FENCED, RequestEvents
from deployments.routing.departures import Departures
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from deployments.routing.token_streams import TokenStream

logger = logging.getLogger("ray.serve")

ABORTED = "the engine aborted the request"


class Delivery:
    """From the token streams of one ingress to its submissions."""

    def __init__(self, submissions: Submissions, departures: Departures, events: RequestEvents) -> None:
        self._submissions = submissions
        self._departures = departures
        self._events = events

    def take_plain(self, stream: TokenStream, tokens: PlainTokens) -> None:
        """What ``take`` does with each of ``tokens``; one that comes too early is told once the others have theirs."""
        of, gap = self._submissions.of, None
        for request_id, attempt, index, token in zip(*tokens):
            submission = of(request_id)
            if submission is not None and submission.stream is stream and not submission.is_troubled:
                entry = submission.entry
                # The first one changes more.
                if index and entry.fingerprint and entry.accept_token(attempt, index, token):
                    submission.deliver_token(index, token)
                    continue
            try:
                self.take(stream, TokenDelta(request_id, attempt, index, [token]))
            except JournalGapError as error:
                gap = error
        if gap is not None:
            raise gap

    def take(self, stream: TokenStream, delta: TokenDelta) -> None:
        """``delta``, which is of a request, came on ``stream``."""
        submission = self._submissions.of(delta.request_id)
        if delta.is_first_word and (delta.request_id, delta.attempt) in self._departures:
            if not stream.was_told(delta.request_id, delta.attempt):
                stream.abort(delta.request_id, delta.attempt)
        elif submission is None or delta.attempt != submission.entry.attempt:
            self._fence(stream, delta, submission)
        else:
            self._accept(stream, delta, submission)

    def _fence(self, stream: TokenStream, delta: TokenDelta, submission: Submission | None) -> None:
        """Nobody waits for it any more."""
        if submission is not None and delta.token_ids:
            self._events.count(FENCED)
        if stream.unwanted(delta):
            what = log_fields(request=delta.request_id, engine=stream.engine_id, attempt=delta.attempt)
            logger.warning("event=aborted_again %s index=%d: its tokens still came", what, delta.index)

    def _accept(self, stream: TokenStream, delta: TokenDelta, submission: Submission) -> None:
        if delta.finish_reason == FINISH_HANDOVER and submission.stream is None and submission.ahead is stream:
            # It was sent ahead, and not begun.
            submission.end_attempt(NotAdmitted(stream.engine_id, "the engine drains"))
            return
        # An engine that gave up on its own account does not end the request; another attempt does.
        aborted = delta.finish_reason in FINISHES_ELSEWHERE
        new = submission.entry.accept(delta._replace(finish_reason=None) if aborted else delta)
        if submission.stream is not stream:
            self._submissions.place(submission, stream)
        if new is not None:
            self._deliver(stream, new, submission)
        if delta.finish_reason == FINISH_HANDOVER:
            submission.end_attempt(HandedOver(stream.engine_id))
        elif delta.finish_reason == FINISH_MOVE:
            submission.end_attempt(Moved(stream.engine_id))
        elif aborted:
            submission.end_attempt(EngineLost(stream.engine_id, ABORTED))

    def _deliver(self, stream: TokenStream, new: TokenDelta, submission: Submission) -> None:
        if not new.index:
            self._submissions.begun(submission)
        submission.entry.fingerprint = of_answer(stream.fingerprint, submission.entry.params.is_masked)
        if submission.lost_at is not None and new.token_ids:
            self._events.recovered(new.request_id, time.monotonic() - submission.lost_at)
            submission.lost_at = None
        if submission.suspicion.progressed(submission.entry.next_index):
            self._submissions.leave_isolation(submission)
        submission.deliver(new)
        if new.finish_reason is not None:
            self._submissions.close(submission)
            submission.end_attempt(None)
