"""The ingress's side of the engines: submits sequences, follows their tokens, and carries them over when an engine dies."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Sequence

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.journal import JournalEntry, RequestJournal
from cluster.outputs import FINISH_ABORT, AttachRequired, GenerateReply, TokenDelta
from deployments.api_errors import ApiError, from_engine, overloaded, unavailable
from deployments.engine_replies import EngineLost, FingerprintMismatch, RequestRefused
from deployments.ingress_metrics import IngressMetrics
from deployments.token_streams import TokenStream, TokenStreams

logger = logging.getLogger("ray.serve")

_DELIVERY_TIMEOUT_S = 60.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_ATTACH_POLL_S = 0.005
_MAX_ATTACH_POLLS = 8


class Submission:
    """One sequence on its way: the journal entry, and who is told of its tokens.

    Attributes:
        entry: what was asked and delivered.
        deliver: called with each delta that is new, in order.
        fail: called once, instead of a last delta, when the sequence cannot be completed.
    """

    def __init__(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> None:
        self.entry = entry
        self.deliver = deliver
        self.fail = fail
        self.stream: TokenStream | None = None
        self.task: asyncio.Task | None = None
        self.ended: asyncio.Future[EngineLost | None] = asyncio.get_running_loop().create_future()

    def end_attempt(self, lost: EngineLost | None) -> None:
        """The attempt is over: finished (None), or lost."""
        if not self.ended.done():
            self.ended.set_result(lost)


class EngineClient:
    """Runs sequences on the engine deployment behind ``handle``; every method belongs to one event loop."""

    def __init__(self, handle: DeploymentHandle, max_attempts: int) -> None:
        self._handle = handle
        self._max_attempts = max_attempts
        self.metrics = IngressMetrics()
        self._journal = RequestJournal()
        self._submissions: dict[str, Submission] = {}
        self.subscriber = f"ingress-{uuid.uuid4().hex[:16]}"
        self._streams = TokenStreams(
            self.subscriber, self._on_deltas, self._journal.resume_indices, self._on_engine_lost
        )

    @property
    def num_running(self) -> int:
        """Sequences that are not finished."""
        return len(self._submissions)

    def submit(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> Submission:
        """Start a sequence. The callbacks run in this event loop, never after ``cancel``."""
        submission = Submission(entry, deliver, fail)
        self._journal.open(entry)
        self._submissions[entry.request_id] = submission
        submission.task = asyncio.get_running_loop().create_task(self._run(submission))
        return submission

    def cancel(self, submission: Submission) -> None:
        """Stop caring about a sequence; its engine frees it at once. Safe to call at any time."""
        self._forget(submission)
        if submission.task is not None and not submission.task.done():
            if submission.stream is not None and not submission.entry.finished:
                submission.stream.abort(submission.entry.request_id, submission.entry.attempt)
            submission.task.cancel()

    async def close(self) -> None:
        """Cancel everything and detach."""
        for submission in list(self._submissions.values()):
            self.cancel(submission)
        await self._streams.close()

    def _forget(self, submission: Submission) -> None:
        self._submissions.pop(submission.entry.request_id, None)
        self._journal.close(submission.entry.request_id)

    def _on_deltas(self, stream: TokenStream, deltas: Sequence[TokenDelta]) -> None:
        for delta in deltas:
            submission = self._submissions.get(delta.request_id)
            if submission is None or delta.attempt != submission.entry.attempt:
                continue
            # An engine that gave up on its own account does not end the request; another attempt does.
            aborted = delta.finish_reason == FINISH_ABORT
            new = submission.entry.accept(delta._replace(finish_reason=None) if aborted else delta)
            submission.stream = stream
            if new is not None:
                submission.entry.fingerprint = stream.fingerprint
                submission.deliver(new)
                if new.finish_reason is not None:
                    self._forget(submission)
                    submission.end_attempt(None)
            if aborted:
                submission.end_attempt(EngineLost(stream.engine_id, "the engine aborted the request"))

    def _on_engine_lost(self, stream: TokenStream, why: str) -> None:
        for submission in list(self._submissions.values()):
            if submission.stream is stream:
                submission.end_attempt(EngineLost(stream.engine_id, why))

    async def _run(self, submission: Submission) -> None:
        try:
            error = await self._complete(submission)
        except Exception as unexpected:
            logger.exception("request %s failed", submission.entry.request_id)
            error = ApiError(500, f"internal error: {type(unexpected).__name__}", code="internal_error")
        if error is not None:
            self._forget(submission)
            submission.fail(error)

    async def _complete(self, submission: Submission) -> ApiError | None:
        """Submit until the sequence is finished (None) or cannot be (the error)."""
        entry = submission.entry
        request, failures, polls = entry.engine_request(), 0, 0
        while True:
            outcome = await self._attempt(submission, request)
            if outcome is None or isinstance(outcome, ApiError):
                return outcome
            if isinstance(outcome, AttachRequired):
                opened = self._streams.attach(outcome)
                polls = 1 if opened else polls + 1
                if polls <= _MAX_ATTACH_POLLS:
                    # The stream and this call reach the engine on different ways; give the stream a head start.
                    await asyncio.sleep(_ATTACH_POLL_S * 2 ** (polls - 1))
                    continue
                outcome = EngineLost(outcome.engine_id, "the token stream could not be attached")
            failures += 1
            if failures >= self._max_attempts:
                return _gave_up(entry, outcome, failures)
            self.metrics.count_attempt(outcome)
            if isinstance(outcome, EngineLost):
                logger.warning(
                    "request %s: attempt %d ended after %d tokens (%s); submitting again",
                    entry.request_id,
                    entry.attempt,
                    entry.next_index,
                    outcome.message,
                )
                if submission.stream is not None:
                    submission.stream.abort(entry.request_id, entry.attempt)
                    submission.stream = None
                submission.ended = asyncio.get_running_loop().create_future()
                request = entry.resume_request()
            backoff = min(_FIRST_BACKOFF_S * 2 ** (failures - 1), _MAX_BACKOFF_S)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))

    async def _attempt(self, submission: Submission, request):
        """One pending call; returns None (finished), an ApiError (final), or a reply that asks for another try."""
        call = self._handle.generate.remote(request, submission.entry.fingerprint)
        reply = asyncio.ensure_future(_reply_of(call))
        try:
            await asyncio.wait((reply, submission.ended), return_when=asyncio.FIRST_COMPLETED)
            if reply.done() and not submission.ended.done():
                outcome = reply.result()
                if not isinstance(outcome, GenerateReply):
                    return outcome
                await asyncio.wait((submission.ended,), timeout=_DELIVERY_TIMEOUT_S)
                if not submission.ended.done():
                    return EngineLost("", f"only {submission.entry.next_index} of {outcome.num_tokens} tokens arrived")
            lost = submission.ended.result()
            if lost is not None and not reply.done():
                call.cancel()
            return lost
        except asyncio.CancelledError:
            if not reply.done():
                call.cancel()
            raise


async def _reply_of(call):
    """The reply of a Serve call; every way to lose the replica becomes EngineLost."""
    try:
        reply = await call
    except BackPressureError as error:
        return overloaded("all engines are busy and the queue is full", error.retry_after_s)
    except DeploymentUnavailableError as error:
        return unavailable(f"no engine could be started: {error}")
    except asyncio.CancelledError:
        return EngineLost("", "the call was cancelled")
    except Exception as error:  # Serve raises what its transport raised: actor death, gRPC status, cancellation
        return EngineLost("", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return from_engine(reply.error) if isinstance(reply, RequestRefused) else reply


def _gave_up(entry: JournalEntry, outcome: EngineLost | FingerprintMismatch, attempts: int) -> ApiError:
    if isinstance(outcome, FingerprintMismatch):
        return unavailable(
            f"the engine that began this answer is gone and no engine with its fingerprint {entry.fingerprint} "
            f"was found in {attempts} attempts; send the request again",
            code="fingerprint_mismatch",
        )
    return unavailable(
        f"no engine completed the request in {attempts} attempts; the last one ended with: {outcome.message}",
        code="engine_dead",
    )
