"""Runs sequences on an engine in this process, as ``EngineClient`` does on those of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from cluster.api_errors import ApiError, from_engine, unavailable
from cluster.errors import BiremeError
from cluster.journal import JournalEntry
from cluster.outputs import StepOutput, TokenDelta
from cluster.routing.fingerprint import of_answer
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.request_events import RequestEvents
from deployments.routing.submission import Submission

if TYPE_CHECKING:
    from actors.engine.engine import Engine


class LocalClient:
    """A ``SequenceClient``. Takes the engine over; belongs to the event loop that it is made in."""

    def __init__(self, engine: Engine) -> None:
        from actors.engine.loop import EngineLoop

        self.subscriber = "local"
        self.events, self.metrics = RequestEvents(), IngressMetrics()
        self._fingerprint = engine.info.fingerprint
        self._open: dict[str, Submission] = {}
        self._loop = asyncio.get_running_loop()
        self._engine_loop = EngineLoop(engine, self._publish, self._on_death)

    def check_room(self, num_sequences: int, tenant: str = "") -> None:
        """There is room for any number: who asks is this process."""

    def submit(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> Submission:
        """Start a sequence; see ``SequenceClient``."""
        submission = self._open[entry.request_id] = Submission(entry, deliver, fail)
        entry.fingerprint = of_answer(self._fingerprint, entry.params.is_masked)
        adding = self._engine_loop.submit(entry.engine_request())
        adding.add_done_callback(lambda future: self._added(submission, future))
        return submission

    def cancel(self, submission: Submission) -> None:
        """Stop caring about a sequence; the engine frees it before its next step."""
        entry = submission.entry
        if self._open.pop(entry.request_id, None) is not None:
            self._engine_loop.abort(entry.request_id, entry.attempt)

    def close(self) -> None:
        """Stop the engine; whoever still waits is told."""
        self._engine_loop.close()
        self._fail_all(unavailable("this LLM was closed"))

    # From the engine loop's thread.

    def _publish(self, output: StepOutput) -> None:
        self._loop.call_soon_threadsafe(self._deliver, output)

    def _on_death(self, error: BaseException) -> None:
        failure = ApiError(500, f"the engine died: {error!r}", code="engine_dead")
        self._loop.call_soon_threadsafe(self._fail_all, failure)

    def _added(self, submission: Submission, future: Future) -> None:
        error = future.exception()
        if error is not None:
            self._loop.call_soon_threadsafe(self._refused, submission, error)

    # On the event loop.

    def _deliver(self, output: StepOutput) -> None:
        for delta in output:
            submission = self._open.get(delta.request_id)
            new = None if submission is None else submission.entry.accept(delta)
            if submission is None or new is None:
                continue
            if submission.entry.finished:
                del self._open[delta.request_id]
            submission.deliver(new)

    def _refused(self, submission: Submission, error: BaseException) -> None:
        if self._open.pop(submission.entry.request_id, None) is not None:
            if isinstance(error, BiremeError):
                submission.fail(from_engine(error))
            else:
                submission.fail(ApiError(500, f"internal error: {error!r}", code="internal_error"))

    def _fail_all(self, error: ApiError) -> None:
        while self._open:
            _, submission = self._open.popitem()
            submission.fail(error)
