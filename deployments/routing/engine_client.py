"""The ingress's side of the engines: submits sequences, follows their tokens, and carries them over when an engine dies."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.api_errors import ApiError
from cluster.journal import JournalEntry, JournalGapError
from cluster.outputs import ENGINE_LEAVES, EngineLoad, PlainTokens, StreamItem, TokenDelta
from cluster.replies import EngineLost
from cluster.scaling.hold import HoldShare
from cluster.scaling.inputs import EngineSample, ScalingInputs
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.request_events import DRAINED, SILENT_ENGINES, RequestEvents
from deployments.native.step_writer import one_step
from deployments.routing.attempts import Attempts
from deployments.routing.balancer import Balancer
from deployments.routing.completion import Completion
from deployments.routing.delivery import Delivery
from deployments.routing.departures import Departures
from deployments.routing.early_streams import keep_attached
from deployments.routing.prompt_start import PromptStart
from deployments.routing.router.engine_choices import AVOID_DEAD_S, EngineChoices
from deployments.routing.router.engine_rooms import EngineRooms
from deployments.routing.shared_calls import SharedCalls
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from deployments.routing.token_streams import TokenStream, TokenStreams
from deployments.routing.waiting.arrival_line import ArrivalLine
from deployments.routing.waiting.turns import Turns

logger = logging.getLogger("ray.serve")

_UNBOUNDED = EngineLoad(2**20, 2**20)


async def _nobody_looks() -> None:
    """Engines come by themselves."""


class EngineClient:
    """Runs sequences on the engine deployment behind ``handle``; every method belongs to one event loop.

    Args:
        choices: of the engines of that deployment.
        idle_room: what an engine takes that has nothing to do; one that has yet to speak counts for such.
        max_queue_share: of the engines' queues, what the sequences of one tenant may hold.
        max_engines: so many there may be at least.
        metrics: of the ingress; None: new ones.
        look: has Serve's controller look around; called while requests wait for a first engine.
        expect: called once when they begin to.
        turns: of requests at this event loop; None: nobody but this client takes any.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        choices: EngineChoices,
        max_attempts: int,
        hang_timeout_s: float = 3.0,
        idle_room: EngineLoad = _UNBOUNDED,
        max_queue_share: float = 1.0,
        max_engines: int = 2,
        metrics: IngressMetrics | None = None,
        look: Callable[[], Awaitable[None]] = _nobody_looks,
        expect: Callable[[], Awaitable[None]] | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.events = RequestEvents()
        self.metrics = metrics or IngressMetrics()
        self.choices = choices
        self.subscriber = f"ingress-{uuid.uuid4().hex[:16]}"
        self._submissions = Submissions(choices)
        self._departures = Departures()
        self._delivery = Delivery(self._submissions, self._departures, self.events)
        self._streams = TokenStreams(
            self.subscriber,
            choices,
            self._on_deltas,
            self._submissions.journal.resume_indices,
            self._on_engine_lost,
            hang_timeout_s,
        )
        self._rooms = EngineRooms(choices, self._streams, self._submissions, idle_room, max_queue_share, max_engines)
        self._balancer = Balancer(self.subscriber, self._streams, choices, self._has_masked, max_queue_share)
        self._attempts = Attempts(
            handle, choices, self._streams, self._submissions, self._departures, self.metrics, hang_timeout_s
        )
        self._turns = turns or Turns()
        self._shared = SharedCalls(handle, self._turns, self._wants_call, self._called)
        self._arrivals = ArrivalLine(choices.must_wait, self._send)
        self._completion = Completion(
            self._attempts,
            choices,
            self._streams,
            self._submissions,
            self._rooms,
            self._balancer,
            self.events,
            self.metrics,
            max_attempts,
        )
        self._attaching: asyncio.Task | None = None
        self._prompt_start = PromptStart(
            lambda: bool(self._submissions.unplaced) and not self.choices.engines,
            look,
            expect,
            self._rooms.num_too_few,
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

    def inputs(self) -> ScalingInputs:
        """What this ingress knows of its own load and of the engines'."""
        engines = (EngineSample(s.engine_id, s.load, s.load_age_s) for s in self._streams if s.load is not None)
        return ScalingInputs(self.metrics.load(self.num_running, len(self._submissions.unplaced)), tuple(engines))

    def may_be(self, max_engines: int) -> None:
        """There may be so many engines from now on."""
        self._rooms.max_engines = max_engines

    def may_hold(self, share: HoldShare) -> None:
        """Of the requests that wait for a first engine, so many may wait here from now on."""
        self._rooms.hold_share = share

    @property
    def most_held(self) -> int:
        """So many sequences may wait here for a first engine."""
        return self._rooms.most_held

    @property
    def num_held(self) -> int:
        """Sequences that no engine is known to have. Any thread may ask."""
        return len(self._submissions.unplaced)

    @property
    def streams(self) -> list[TokenStream]:
        """The engines that this ingress is attached to."""
        return list(self._streams)

    def check_room(self, num_sequences: int, tenant: str = "") -> None:
        """Raise ApiError 429 if the engines do not take so many now, or not of this tenant. Those that are submitted at once have
        their places. A look that changes nothing, so another thread may ask, too."""
        self._rooms.check(num_sequences, tenant)

    def submit(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> Submission:
        """Start a sequence. The callbacks run in this event loop, never after ``cancel``."""
        submission = Submission(entry, deliver, fail)
        # Held until one has started, and then not refused for want of room.
        submission.is_admitted |= self._rooms.is_held(submission)
        self._submissions.open(submission)
        self._prompt_start.hurry()
        if entry.attempt:
            self._send(submission)
        else:
            self._arrivals.come(submission)
        return submission

    def _send(self, submission: Submission) -> None:
        if self._attempts.begin_ahead(submission):
            submission.ended.add_done_callback(lambda _: self._go_on(submission))
            # The engine may refuse a grammar.
            self._shared.add(submission, at_once=submission.entry.params.is_masked)
        else:
            self._begin(submission)

    def _begin(self, submission: Submission) -> None:
        # Of no HTTP request: Serve would cancel the calls of one whose client has gone, and a cancelled call is a lost attempt.
        submission.task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._run(submission))

    def _go_on(self, submission: Submission) -> None:
        """What went ahead mostly needs nobody who waits for its end; but it has ended otherwise, or may."""
        if submission.task is None and self._submissions.of(submission.entry.request_id) is submission:
            self._begin(submission)

    def _wants_call(self, submission: Submission) -> bool:
        """Whether Serve's call follows what went ahead: Serve is to count it though it is over, or was cut at a stop string."""
        is_open = self._submissions.of(submission.entry.request_id) is submission and submission.task is None
        return is_open or submission.entry.finished or submission.entry.next_index > 0

    def _called(self, submission: Submission) -> None:
        """The call that it shares is under way."""
        assert submission.call is not None
        _, reply = submission.call
        self._attempts.note(submission, reply)
        reply.add_done_callback(lambda _: self._go_on(submission))
        if submission.stream is None:
            # Somebody has to see whether the engine takes it.
            self._go_on(submission)

    async def _run(self, submission: Submission) -> None:
        try:
            error = await self._completion.run(submission)
        except Exception as unexpected:
            logger.exception("request %s failed", submission.entry.request_id)
            error = ApiError(500, f"internal error: {type(unexpected).__name__}", code="internal_error")
        self._submissions.leave_isolation(submission)
        if error is not None:
            # Who refused it may not be the engine that was sent it.
            submission.abort()
            self._submissions.close(submission)
            submission.fail(error)

    def cancel(self, submission: Submission) -> None:
        """Stop caring about a sequence; its engine frees it at once. Safe to call at any time."""
        was_sent = bool(self.choices.chosen(submission.entry.request_id))
        self._arrivals.forget(submission)
        self._submissions.close(submission)
        self._submissions.leave_isolation(submission)
        task = submission.task
        if task is not None:
            if task.done():
                return
            task.cancel()
        if submission.entry.finished:
            return
        key = submission.entry.request_id, submission.entry.attempt
        if submission.call is not None and not submission.call[1].done():
            if was_sent:
                self._departures.begin(key, *submission.call)
            else:
                submission.call[0].cancel()
        submission.abort()

    async def close(self) -> None:
        """Cancel everything and detach."""
        self._prompt_start.close()
        self._turns.close()
        if self._attaching is not None:
            self._attaching.cancel()
        for submission in self._submissions:
            self.cancel(submission)
        await self._balancer.close()
        await self._departures.close()
        await self._shared.close()
        await self._streams.close()

    def _has_masked(self, stream: TokenStream) -> bool:
        on = self._submissions.on(stream)
        return any(one.entry.params.is_masked and not one.entry.next_index for one in on)

    def _on_deltas(self, stream: TokenStream, items: Sequence[StreamItem]) -> None:
        """Raises JournalGapError once all that can be was delivered: the rest is said again to who attaches again, but not who
        leaves and what it takes."""
        gap: JournalGapError | None = None
        with one_step():
            for item in items:
                try:
                    self._on_item(stream, item)
                except JournalGapError as error:
                    gap = error
        if gap is not None:
            raise gap

    def _on_item(self, stream: TokenStream, item: StreamItem) -> None:
        if isinstance(item, EngineLoad):
            stream.announced(item)
            self.choices.announced(stream.engine_id, item, stream.load_age_s)
            self._rooms.changed()
            self._balancer.changed()
            self._arrivals.changed()
            self._prompt_start.hurry()
        elif isinstance(item, PlainTokens):
            self._delivery.take_plain(stream, item)
        elif item.request_id:
            self._delivery.take(stream, item)
        elif item == ENGINE_LEAVES:
            stream.leaves = True
            self.choices.avoid(stream.engine_id, AVOID_DEAD_S)
            self.events.record(DRAINED, "-", engine=stream.engine_id)

    def _on_engine_lost(self, stream: TokenStream, why: str) -> None:
        self.choices.avoid(stream.engine_id, AVOID_DEAD_S)
        if stream.alive:
            self.events.record(SILENT_ENGINES, "-", engine=stream.engine_id)
        for submission in self._submissions.sent_to(stream):
            submission.end_attempt(EngineLost(stream.engine_id, why, died=True))
