"""The Ray actor of one rank: owns an engine, takes requests, and streams tokens to every ingress that attached.

Wrapped with ``ray.remote`` by the deployment; plain here, so that a test can drive it in one process. All methods run on
the actor's asyncio loop and only pass messages to and from the engine loop's thread.

A request is one pending ``generate`` call. Its tokens travel on the subscriber's stream, one message per engine step with
the tokens of every request of that subscriber; the reply of ``generate`` only says how many there were. A stream that has
nothing to say carries the engine's load four times a second: silence means that this process or its engine hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.arrivals import Arrivals
from actors.delta_stream import DeltaStream, SubscriberStream
from actors.live_requests import LiveRequest, LiveRequests, fail
from actors.model_files.peers.find_model import Found, find_model, model_settings
from actors.model_files.peers.replies import Description, Peers, State
from actors.model_files.peers.sender import FileSender
from actors.model_files.source import ModelSource
from actors.paced_call import PacedCall
from actors.place_reservations import PlaceReservations
from actors.requests_ahead import Reply, RequestsAhead
from actors.subscriptions import Subscriptions
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError, StaleAttemptError
from cluster.observability.start_stages import StartStages, start_fields
from cluster.outputs import (
    ENGINE_LEAVES,
    FINISH_ABORT,
    FINISH_HANDOVER,
    FINISH_MOVE,
    AttachRequired,
    EngineInfo,
    EngineLoad,
    GenerateReply,
    NotAdmitted,
    PlacesKept,
    StepOutput,
    StreamItem,
    TokenDelta,
)
from cluster.process.freeze_gc import freeze_gc
from cluster.process.logs import log_fields, show_logs
from cluster.process.silence_clock import TICK_S, SilenceClock
from cluster.request import EngineRequest, RequestKey

if TYPE_CHECKING:
    import numpy as np

    from actors.engine.engine import Engine
    from actors.engine.kept_weights import WhenReady

logger = logging.getLogger("bireme.runner")

# A step with prefill may take this many times ``hang_timeout_s``: a chunk of prompt is hundreds of tokens of work.
PREFILL_FACTOR = 10
# A subscriber that does not come back within this time is gone, and nobody wants its tokens.
ORPHAN_S = 10.0
# Not more often the books are kept and subscribers told what the engine takes because requests begin and end there: steps of a
# millisecond have such news in each of them, and the engine's thread waits for the interpreter while it is told.
_KEEP_UP_EACH_S = 0.01


class RunnerActor:
    """One copy of the model as an actor.

    Args:
        config: settings of the engine.
        engine_id: name in metrics and logs.
        stages: what of this engine's start is over; None if it begins here.
    """

    def __init__(self, config: EngineConfig, engine_id: str, stages: StartStages | None = None) -> None:
        show_logs()
        self._stages = stages or StartStages(time.monotonic())
        self._stage_ended("runner")
        self._config = config
        self._engine_id = engine_id
        self._info: EngineInfo | None = None
        self._files = FileSender(model_settings(config))
        self._found: Found | None = None
        self._when_ready: list[WhenReady] = []
        self._live = LiveRequests()
        self._ahead = RequestsAhead(self._abort)
        self._num_arrived = 0
        self._arrivals = Arrivals()
        self._keeping_up = PacedCall(self._keep_up, _KEEP_UP_EACH_S, self._call_on_loop)
        self._subscriptions = Subscriptions(self._live.subscriber, self._keeping_up.ask, self._call_on_loop)
        self._reservations = PlaceReservations(self._release_reserved)
        self._draining: asyncio.Task | None = None
        self._drain_until = float("inf")
        self._step_clock = SilenceClock()
        self._watching: asyncio.Task | None = None
        # Of its own and only one: who sends grammars that take long waits for others who do, and nobody else does.
        self._compiler = ThreadPoolExecutor(1, "grammars")
        self._compiling: dict[RequestKey, asyncio.Future] = {}
        self._compilations: set[asyncio.Task] = set()

    async def start(self) -> EngineInfo:
        """Build the ops, load the model, run the warm-up requests, start the loop.

        Raises:
            ModelLoadError, ConfigError, OpBuildError: one message that says what to do.
        """
        self._loop = asyncio.get_running_loop()
        engine = await self._loop.run_in_executor(None, self._load)
        freeze_gc()
        self._info = engine.info
        self._compile_grammar = engine.compile_grammar
        self._is_ready_for_grammars = lambda: engine.is_ready_for_grammars
        self._get_ready_for_grammars = engine.get_ready_for_grammars
        self._engine_loop = _new_loop(engine, self._subscriptions.publish, self._on_death, self._keeping_up.ask)
        for begin in self._when_ready:
            begin(self._engine_loop.fail)
        # First steps after loading are the warm-up's; they ended before the watch begins.
        self._watching = self._loop.create_task(self._watch())
        self._stage_ended("ready")
        start = self._stages.figures(time.monotonic())
        logger.info("event=engine_ready %s", log_fields(engine=self._engine_id, **start_fields(start)))
        return engine.info

    def _stage_ended(self, stage: str) -> None:
        self._stages.end(stage, time.monotonic())

    def _load(self):
        # Imported here: Ray imports this module wherever the class is known, and only the runner's process needs Paddle.
        from actors.engine.starting import start_engine

        # A thread that waits for the interpreter lock gets it after this time; steps are tens of milliseconds.
        sys.setswitchinterval(0.0005)
        return start_engine(self._config, self._engine_id, self._stage_ended, self._find_model, self._when_ready)

    def _peers(self) -> Peers | None:
        """Other nodes' engines; none here."""
        return None

    def _find_model(self) -> ModelSource:
        self._found = find_model(self._config, self._peers(), self._tell_progress, self._files.is_searching)
        # Before the engine is ready: others can begin meanwhile.
        if self._config.weights_from_peers:
            self._files.offer(self._found.source)
        return self._found.source

    def _tell_progress(self, what: str, done: int, total: int) -> None:
        self._stages.tell(f"{what}, {100 * done // total} %" if total else what)

    async def describe_model_files(self, settings: tuple[str, ...]) -> Description:
        """What this engine offers of the model that has these settings (``peers.find_model.model_settings``)."""
        return self._files.describe(settings)

    async def read_model_file(self, receiver: str, identity: str, file: int, chunk: int) -> np.ndarray | State:
        """A chunk of a file of the manifest with this identity, for an engine or an ingress on another node."""
        return await self._files.read(receiver, identity, file, chunk)

    async def finished_model_files(self, receiver: str) -> None:
        """``receiver`` needs no more chunks."""
        self._files.finished(receiver)

    def begin(self, request: EngineRequest) -> None:
        """Begin a request whose call of ``generate`` will follow, and be told why if it is refused. An engine that drains says so
        on the stream at once, as a hand-over before its first word."""
        key = request.request_id, request.attempt
        is_known = key in self._ahead or self._live.newest_attempt(request.request_id) >= request.attempt
        if self._info is None or request.subscriber not in self._subscriptions or is_known:
            return
        if self._draining is not None:
            index = len(request.output_token_ids)
            leaves = TokenDelta(*key, index, [], finish_reason=FINISH_HANDOVER)
            self._subscriptions.say(request.subscriber, [leaves])
            return
        self._ahead.begin(key, self._begin(request))

    def give_up(self, subscriber: str, key: RequestKey) -> None:
        """End a request of ``subscriber``, also one that ``begin`` was given just now."""
        if self._live.subscriber(key) == subscriber:
            self._abort(key)

    async def generate(self, request: EngineRequest) -> GenerateReply | AttachRequired | NotAdmitted:
        """Run one request to its end, or wait for its end if it came ahead. Pending for the whole generation; cancelling it
        aborts the request.

        The subscriber learns from an empty delta that the request is here: if this process dies, it died with the request.

        Raises:
            InvalidRequestError, OverloadedError: it was not taken.
            StaleAttemptError: this attempt or a newer one is here.
            EngineDeadError: the engine died under it.
        """
        key = request.request_id, request.attempt
        reply = self._ahead.take(key)
        if reply is None:
            reply = self._begin(request)
        try:
            return await reply
        except asyncio.CancelledError:
            self._abort(key)
            raise

    def _begin(self, request: EngineRequest) -> Reply:
        """Begin one request; what ``generate`` is answered with. It has no task of its own: the engine's thread waits while this
        thread computes."""
        assert self._info is not None
        reply: Reply = self._loop.create_future()
        if self._draining is not None:
            reply.set_result(NotAdmitted(self._engine_id, "the engine drains"))
            return reply
        if request.subscriber not in self._subscriptions:
            reply.set_result(AttachRequired(self._engine_id, None, self._info.fingerprint))
            return reply
        before = self._live.newest_attempt(request.request_id)
        try:
            live = self._live.open(request, reply)
        except StaleAttemptError as error:
            fail(reply, error)
            return reply
        if 0 <= before < request.attempt:
            self._abort((request.request_id, before))
        try:
            self._subscriptions.say(request.subscriber, [live.first_word])
            self._keeping_up.ask()
            if request.params.is_masked:
                self._compiling[live.key] = self._loop.create_future()
                compilation = self._loop.create_task(self._compile_and_submit(live))
                self._compilations.add(compilation)
                compilation.add_done_callback(self._compilations.discard)
            else:
                self._submit(live)
        except Exception as error:  # who calls goes on with other requests
            logger.exception("request %s attempt %d cannot begin", *live.key)
            self._refuse(live, error)
        return reply

    def _submit(self, live: LiveRequest) -> None:
        def refused(error: BaseException) -> None:
            self._loop.call_soon_threadsafe(self._refuse, live, error)

        self._engine_loop.post(self._adding(live), refused)

    def _refuse(self, live: LiveRequest, error: BaseException) -> None:
        """The engine does not have it."""
        self._live.drop(live.key)
        self._arrivals.forget(live.key)
        fail(live.done, error)
        self._keeping_up.ask()

    async def _compile_and_submit(self, live: LiveRequest) -> None:
        try:
            gone = await self._compile(live)
        except Exception as error:
            self._refuse(live, error)
            return
        if gone:
            self._subscriptions.publish(StepOutput([live.first_word._replace(finish_reason=gone)]))
        else:
            self._submit(live)

    async def _compile(self, live: LiveRequest) -> str:
        """Compile a request's grammar beside the engine's thread. Returns why the request is not to be submitted, "" if it is.

        Raises:
            InvalidRequestError: the grammar is not valid, or beyond the limits.
        """
        key, aborted = live.key, self._compiling[live.key]
        try:
            compiled = self._loop.run_in_executor(self._compiler, self._compile_grammar, live.request)
            try:
                await asyncio.wait((compiled, aborted), return_when=asyncio.FIRST_COMPLETED)
            finally:
                compiled.cancel()  # what is over stays, what runs goes on, what waits is not wanted any more
        finally:
            del self._compiling[key]
        if aborted.done():
            return FINISH_ABORT
        live.grammar = compiled.result()
        return FINISH_HANDOVER if self._draining is not None else ""

    async def abort(self, request_id: str, attempt: int) -> None:
        """End a request if it is here; its KV blocks are free before the next step."""
        self._abort((request_id, attempt))

    def _abort(self, key: RequestKey) -> None:
        aborted = self._compiling.get(key)
        if aborted is None:
            self._engine_loop.abort(*key)
        elif not aborted.done():
            aborted.set_result(None)

    async def attach(
        self, subscriber: str, resume: dict[str, int], leased: bool = False
    ) -> AsyncGenerator[list[StreamItem], None]:
        """Stream what is said of every request of ``subscriber``, plain tokens and deltas, one list per engine step.

        Args:
            subscriber: name of the ingress. A second attach of the same name replaces the first.
            resume: request id to the index of the next token wanted, for a stream that broke.
            leased: the subscriber calls ``renew`` every few seconds; without it the stream ends after ORPHAN_S seconds.
        """
        stream = DeltaStream(leased)
        self.subscribe(subscriber, resume, stream)
        try:
            async for deltas in stream.messages(self._is_well, lambda: self._load_for(subscriber)):
                yield deltas
        finally:
            self.unsubscribe(subscriber, stream)

    def subscribe(self, subscriber: str, resume: dict[str, int], stream: SubscriberStream) -> None:
        """Say on ``stream`` what ``attach`` yields, until ``unsubscribe``; first comes what was missed, that the engine leaves
        included."""

        def missed() -> Iterator[list[TokenDelta]]:
            self._read_outputs()
            yield from self._live.missing(subscriber, resume)
            if self._draining is not None:
                yield [ENGINE_LEAVES]

        self._subscriptions.open(subscriber, stream, missed)
        self._stage_ended("seen")

    def unsubscribe(self, subscriber: str, stream: SubscriberStream) -> None:
        """``stream`` has ended. Unless there is another one soon, so do the subscriber's requests."""
        if self._subscriptions.forget(subscriber, stream):
            self._loop.call_later(ORPHAN_S, self._abort_orphans, subscriber)

    def news_for(self, subscriber: str) -> EngineLoad | None:
        """What the engine takes; None while it does not answer in time itself."""
        return self._load_for(subscriber) if self._is_well() else None

    async def renew(self, subscriber: str) -> None:
        """The subscriber of a leased stream is still there."""
        self._subscriptions.renew(subscriber)

    async def detach(self, subscriber: str) -> None:
        """End the subscriber's stream once it is empty."""
        self._subscriptions.end(subscriber)

    async def drain(self, timeout_s: float) -> int:
        """Take no new request, let those that run finish for ``timeout_s`` seconds, and hand the rest over.

        Requests that have not begun are handed over at once. Returns how many were handed over. A second call can only make
        the time shorter, and waits for the same end.
        """
        self._drain_until = min(self._drain_until, time.monotonic() + timeout_s)
        if self._draining is None:
            self._draining = self._loop.create_task(self._drain())
        return await asyncio.shield(self._draining)

    async def _drain(self) -> int:
        self._subscriptions.say_to_all([ENGINE_LEAVES])
        moved = await self._hand_over(
            lambda engine: [(s.request.request_id, s.request.attempt) for s in engine.scheduler.waiting]
        )
        idle = self._loop.create_task(self._live.idle.wait())
        while not idle.done() and time.monotonic() < self._drain_until:
            await asyncio.wait((idle,), timeout=TICK_S)
        idle.cancel()
        moved += await self._hand_over(lambda engine: list(engine.scheduler.request_keys()))
        logger.info("%s drained: %d requests handed over", self._engine_id, moved)
        return moved

    async def reserve(self, subscriber: str, count: int) -> PlacesKept:
        """Keep up to ``count`` places for requests that ``subscriber`` is about to bring from a full engine."""
        if self._draining is not None or self._info is None:
            return PlacesKept()

        def run(engine) -> tuple[int, int]:
            num_tokens = engine.scheduler.num_open_tokens
            return engine.scheduler.reserve(count), num_tokens

        granted, num_tokens = await asyncio.wrap_future(self._engine_loop.call(run))
        return PlacesKept(granted, num_tokens, self._reservations.add(subscriber, granted))

    async def give_back(self, subscriber: str, number: int, count: int) -> None:
        """So many places of a reservation of ``subscriber`` it does not need."""
        self._reservations.give_back(subscriber, number, count)

    async def get_ready_for_grammars(self) -> None:
        """Load what a first grammar needs: requests that wait elsewhere are about to bring some."""
        await self._loop.run_in_executor(self._compiler, self._get_ready_for_grammars)

    async def hand_back(self, subscriber: str, count: int, num_tokens: int, masked: bool = True) -> int:
        """Give up to ``count`` waiting requests of ``subscriber``, the first in the order of service, back to it: there is a
        place for them elsewhere.

        Args:
            num_tokens: the prompts together have at most so many tokens.
            masked: those under a grammar or a budget may go, too; where they would wait for a vocabulary they had better stay.
        Returns:
            How many; their last deltas say FINISH_MOVE. Those stay whose cached prompts are worth more than the time they
            are expected to wait.
        """
        waited_s = {key: self._live.wait_s(key) for key, _ in self._live.unfinished()}

        def choose(engine: Engine) -> list[RequestKey]:
            return engine.requests_to_move(subscriber, count, num_tokens, waited_s, masked)

        return await self._hand_over(choose, FINISH_MOVE)

    async def _hand_over(self, choose, finish_reason: str = FINISH_HANDOVER) -> int:
        """End the requests whose keys ``choose(engine)`` returns, so that their ingress continues them elsewhere."""

        def run(engine) -> int:
            ended = [engine.abort(*key) for key in choose(engine)]
            deltas = [delta._replace(finish_reason=finish_reason) for delta in ended if delta is not None]
            self._subscriptions.publish(StepOutput(deltas))
            return len(deltas)

        return await asyncio.wrap_future(self._engine_loop.call(run))

    async def stats(self) -> dict:
        """Counters: requests by state, tokens, blocks, steps, preemptions, times; those of the past count from the start.
        And where the engine computes and what holds the memory there (``Engine.figures``), and what its start took
        (``StartStages.figures``).
        """

        def read(engine) -> dict:
            scheduler = engine.scheduler
            return {
                "num_requests_waiting": len(scheduler.waiting),
                "num_requests_running": len(scheduler.running),
                "num_slots_leaving": len(scheduler.leaving),
                "num_preemptions": scheduler.num_preemptions,
                "num_prompt_tokens": scheduler.num_prompt_tokens,
                "num_cached_prompt_tokens": scheduler.num_cached_prompt_tokens,
                "num_generated_tokens": scheduler.num_generated_tokens,
                "num_blocks_available": scheduler.kv_cache.num_available,
                "num_blocks": scheduler.kv_cache.num_blocks,
                **engine.figures(),
            }

        start = self._stages.figures(time.monotonic())
        if self._info is None:
            return {"engine_id": self._engine_id, "state": "loading", "pid": os.getpid(), "start": start}
        received = self._found.received if self._found is not None else None
        stats = await asyncio.wrap_future(self._engine_loop.call(read))
        load = self._load_for("")
        return {
            **stats,
            "num_requests_arrived": load.num_arrived,
            "num_tokens_running": load.running_tokens,
            "num_tokens_waiting": load.waiting_tokens,
            "longest_wait_s": load.longest_wait_s,
            "num_kv_tokens_free": load.free_kv_tokens,
            "engine_id": self._engine_id,
            "fingerprint": self._info.fingerprint,
            "state": "draining" if self._draining is not None else "running",
            "pid": os.getpid(),
            "num_steps": self._engine_loop.num_steps,
            "num_subscribers": len(self._subscriptions),
            "start": start,
            "num_model_bytes_sent": self._files.num_bytes_sent,
            **({"model_files_from": received.figures()} if received is not None else {}),
        }

    async def check_health(self) -> None:
        """Raise EngineDeadError when the loop died or hangs in a step."""
        if self._info is None:
            return
        if self._engine_loop.error is not None:
            raise EngineDeadError(f"the engine loop died: {self._engine_loop.error!r}")
        if not self._is_well():
            raise EngineDeadError(f"the engine hangs: one step has taken {self._engine_loop.seconds_in_step():.0f} s")

    async def check_integrity(self) -> dict:
        """Raise if blocks, slots or queues are inconsistent; else the same as ``stats``."""
        await asyncio.wrap_future(self._engine_loop.call(lambda engine: engine.check_integrity()))
        return await self.stats()

    async def record_timeline(self, num_steps: int, timeout_s: float) -> bytes:
        """The next ``num_steps`` steps as a Chrome trace in JSON (``actors.engine.stats.timeline``); fewer if they take longer.

        Raises:
            InvalidRequestError: the number is out of range, or another recording is under way.
        """
        timeline = await asyncio.wrap_future(self._engine_loop.call(lambda engine: engine.start_timeline(num_steps)))
        try:
            await asyncio.wait((asyncio.wrap_future(timeline.full),), timeout=timeout_s)
        finally:
            # On the loop's thread, because it may be adding a step at this moment.
            stopped = self._engine_loop.call(lambda engine: engine.stop_timeline(timeline))
        await asyncio.wrap_future(stopped)
        # 1.5 s for 10,000 steps; the token streams run on this loop.
        return await asyncio.to_thread(timeline.chrome_trace_json)

    def _is_well(self) -> bool:
        factor = PREFILL_FACTOR if self._engine_loop.computes_prefill else 1
        return self._step_clock.silent_s <= self._config.hang_timeout_s * factor

    async def _watch(self) -> None:
        """End this engine when one step takes longer than it may: whoever waits for it goes elsewhere."""
        steps = -1
        while self._is_well():
            await asyncio.sleep(TICK_S)
            self._step_clock.tick()
            self._end_leases()
            self._live.drop_old()
            self._ahead.give_up_old()
            if self._engine_loop.num_steps != steps or not self._engine_loop.seconds_in_step():
                steps = self._engine_loop.num_steps
                self._step_clock.heard()
        logger.error("%s hangs: one step has taken %.1f s", self._engine_id, self._engine_loop.seconds_in_step())
        self._fail_all(EngineDeadError("one step took longer than hang_timeout_s allows"))

    async def shutdown(self) -> None:
        """End streams and the engine loop."""
        if self._watching is not None:
            self._watching.cancel()
        self._ahead.close()
        self._subscriptions.end_all()
        if self._info is not None:
            await self._loop.run_in_executor(None, self._engine_loop.close)

    # From the engine loop's thread.

    def _call_on_loop(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _on_death(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail_all, error)

    # On the actor's loop.

    def _keep_up(self) -> None:
        self._read_outputs()
        if self._is_well():
            self._subscriptions.tell(self._loads())

    def _read_outputs(self) -> None:
        """Take into the books what the engine has said."""
        for at, output in self._subscriptions.take():
            for subscriber, tokens in output.plain.items():
                self._live.deliver_plain(subscriber, tokens)
            for delta in output.deltas:
                if self._live.deliver(delta, self._engine_loop.take_queue_time, at) is None:
                    continue
                self._stage_ended("first_token")
                if delta.finish_reason is not None:
                    self._arrivals.forget((delta.request_id, delta.attempt))

    def _fail_all(self, error: BaseException) -> None:
        self._read_outputs()
        self._live.fail_all(EngineDeadError(f"the engine died: {error!r}"))
        self._subscriptions.end_all()
        self._after_engine_death()

    def _after_engine_death(self) -> None:
        """For the deployed actor: its process ends, so that whoever waits for it learns at once."""

    def _end_leases(self) -> None:
        for subscriber in self._subscriptions.end_leases(ORPHAN_S):
            logger.warning("subscriber %s was not heard of for %g s; detached", subscriber, ORPHAN_S)
            self._abort_orphans(subscriber)

    def _load_for(self, subscriber: str) -> EngineLoad:
        self._read_outputs()
        return self._loads()(subscriber)

    def _loads(self) -> Callable[[str], EngineLoad]:
        """What the engine takes now, as each subscriber is told. Room is counted here rather than in the scheduler, so that what
        is on its way to it has its place already."""
        age_s = self._engine_loop.queue_age_s
        config, queue, arrivals = self._config, self._engine_loop.queue, self._arrivals
        arrivals.seen(queue.sampled_at)
        queue_time_counts, queue_time_s = self._engine_loop.queue_times
        coming, coming_priority = arrivals.line(queue.open_places)
        line_length = sum(queue.num_movable.values())
        priorities = [queue.line_priority] * bool(line_length) + [coming_priority] * bool(coming)
        load = EngineLoad(
            free=config.max_num_seqs + config.max_queued_requests - self._live.num_unfinished,
            max_queued=config.max_queued_requests,
            num_ended=self._live.num_ended,
            num_tokens=self._live.num_tokens,
            open_places=0 if self._draining is not None else max(0, queue.open_places - arrivals.num_unexpected),
            sampled_at=time.time() - age_s,
            num_running=queue.num_running,
            num_waiting=queue.num_waiting + len(arrivals),
            waiting_tokens=queue.waiting_tokens + arrivals.num_tokens,
            longest_wait_s=round(max(self._live.wait_s(queue.first_come), arrivals.longest_wait_s), 3),
            kv_tokens=queue.kv_tokens,
            free_kv_tokens=queue.free_kv_tokens,
            num_arrived=self._num_arrived,
            num_prompt_tokens=queue.num_prompt_tokens,
            num_cached_prompt_tokens=queue.num_cached_prompt_tokens,
            num_generated_tokens=queue.num_generated_tokens,
            num_preemptions=queue.num_preemptions,
            num_steps=queue.num_steps,
            num_prefill_tokens=queue.num_prefill_tokens,
            queue_time_counts=queue_time_counts,
            queue_time_s=round(queue_time_s, 3),
            line_length=line_length + coming,
            line_priority=min(priorities, default=0),
            ready_for_grammars=self._is_ready_for_grammars(),
            told_after_s=age_s,
            uncomputed_tokens=queue.uncomputed_tokens + arrivals.num_tokens,
        )

        def of(subscriber: str) -> EngineLoad:
            num_movable = queue.num_movable.get(subscriber, 0)
            if not num_movable:
                return load
            oldest_wait_s = self._live.wait_s(queue.oldest.get(subscriber))
            return load._replace(num_movable=num_movable, oldest_wait_s=oldest_wait_s)

        return of

    def _adding(self, live: LiveRequest) -> Callable[[Engine], None]:
        """What the engine's thread is to do about a request that comes, to the place that was kept for it if there is one. Who
        comes too late for its place is like any other."""
        request = live.request
        is_expected = self._reservations.take(request.subscriber, request.place)
        if request.moved and not is_expected:
            request = replace(request, place=0)
        is_movable = not (request.moved or request.output_token_ids)
        priority = request.priority if is_movable else None
        arrivals, queue = self._arrivals, self._engine_loop.queue
        arrivals.seen(queue.sampled_at)
        was_line = queue.num_movable or arrivals.is_line(queue.open_places)
        arrival = arrivals.add((request.request_id, request.attempt), live.num_tokens, priority, is_expected)
        if not was_line and arrivals.is_line(queue.open_places):
            # Until other ingresses hear that somebody waits here, they send who comes later to where there is room.
            self._keep_up()

        def run(engine) -> None:
            if is_expected:
                engine.scheduler.release_reserved(1)
            live.follow(engine.add_request(request))
            arrival.taken_at = engine.clock.now()
            self._num_arrived += 1

        return run

    def _release_reserved(self, count: int) -> None:
        self._engine_loop.call(lambda engine: engine.scheduler.release_reserved(count))

    def _abort_orphans(self, subscriber: str) -> None:
        """End the requests of a subscriber that did not come back."""
        if subscriber in self._subscriptions:
            return
        for key, _ in list(self._live.unfinished(subscriber)):
            logger.warning("request %s attempt %d: its ingress is gone; aborted", *key)
            self._abort(key)


def _new_loop(engine, *callbacks):
    from actors.engine.loop import EngineLoop

    return EngineLoop(engine, *callbacks)
