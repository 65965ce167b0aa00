"""The Ray actor of one rank: owns an engine, takes requests, and streams tokens to every ingress that attached.

Wrapped with ``ray.remote`` by the deployment; plain here, so that a test can drive it in one process. All methods run on
the actor's asyncio loop and only pass messages to and from the engine loop's thread. This is the door; what is behind it:
``EngineStart`` and ``ServingEngine``.

A request is one pending ``generate`` call. Its tokens travel on the subscriber's stream, one message per engine step with
the tokens of every request of that subscriber; the reply of ``generate`` only says how many there were. A stream that has
nothing to say carries the engine's load four times a second: silence means that this process or its engine hangs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from actors.delta_stream import DeltaStream, SubscriberStream
from actors.engine_start import EngineStart
from actors.model_files.peers.replies import Description, Peers, State
from actors.serving_engine import ServingEngine
from cluster.config import EngineConfig
from cluster.observability.start_stages import StartStages
from cluster.outputs import (
    AttachRequired,
    EngineInfo,
    EngineLoad,
    GenerateReply,
    NotAdmitted,
    PlacesKept,
    StreamItem,
)
from cluster.process.logs import show_logs
from cluster.request import EngineRequest, RequestKey

if TYPE_CHECKING:
    import numpy as np

    from actors.engine.engine import Engine


class RunnerActor:
    """One copy of the model as an actor.

    Args:
        config: settings of the engine.
        engine_id: name in metrics and logs.
        stages: what of this engine's start is over; None if it begins here.
        peers: other nodes' engines, asked for model files that this one lacks; None where there are none.
        after_death: called when nothing more comes of the engine.

    Attributes:
        config, engine_id: as given.
        starting: the engine's start.
    """

    def __init__(
        self,
        config: EngineConfig,
        engine_id: str,
        stages: StartStages | None = None,
        peers: Callable[[], Peers | None] = lambda: None,
        after_death: Callable[[], None] = lambda: None,
    ) -> None:
        show_logs()
        self.config = config
        self.engine_id = engine_id
        self.starting = EngineStart(config, engine_id, stages, peers)
        self._after_death = after_death
        self._serving: ServingEngine | None = None

    @property
    def serving(self) -> ServingEngine:
        """The engine; it has started."""
        assert self._serving is not None, "the engine has not started"
        return self._serving

    async def start(self) -> EngineInfo:
        """Build the ops, load the model, run the warm-up requests, start the loop.

        Raises:
            ModelLoadError, ConfigError, OpBuildError: one message that says what to do.
        """
        engine = await asyncio.get_running_loop().run_in_executor(None, self.starting.load)
        # Imported here, as what loads the engine: only the runner's process needs it.
        from actors.engine.loop import EngineLoop

        self._serving = ServingEngine(self.config, engine, EngineLoop, self.starting.ended, self._after_death)
        self.starting.complete(self._serving.engine_loop.fail)
        return engine.info

    async def describe_model_files(self, settings: tuple[str, ...]) -> Description:
        """What this engine offers of the model that has these settings (``peers.find_model.model_settings``)."""
        return self.starting.files.describe(settings)

    async def read_model_file(self, receiver: str, identity: str, file: int, chunk: int) -> np.ndarray | State:
        """A chunk of a file of the manifest with this identity, for an engine or an ingress on another node."""
        return await self.starting.files.read(receiver, identity, file, chunk)

    async def finished_model_files(self, receiver: str) -> None:
        """``receiver`` needs no more chunks."""
        self.starting.files.finished(receiver)

    def begin(self, request: EngineRequest) -> None:
        """Begin a request whose call of ``generate`` will follow, and be told why if it is refused. An engine that drains says so
        on the stream at once, as a hand-over before its first word."""
        if self._serving is not None:
            self._serving.requests.begin(request)

    def give_up(self, subscriber: str, key: RequestKey) -> None:
        """End a request of ``subscriber``, also one that ``begin`` was given just now."""
        self.serving.requests.give_up(subscriber, key)

    async def generate(self, request: EngineRequest) -> GenerateReply | AttachRequired | NotAdmitted:
        """Run one request to its end, or wait for its end if it came ahead. Pending for the whole generation; cancelling it
        aborts the request.

        The subscriber learns from an empty delta that the request is here: if this process dies, it died with the request.

        Raises:
            InvalidRequestError, OverloadedError: it was not taken.
            StaleAttemptError: this attempt or a newer one is here.
            EngineDeadError: the engine died under it.
        """
        return await self.serving.requests.generate(request)

    async def abort(self, request_id: str, attempt: int) -> None:
        """End a request if it is here; its KV blocks are free before the next step."""
        self.serving.requests.abort((request_id, attempt))

    async def attach(
        self, subscriber: str, resume: dict[str, int], leased: bool = False
    ) -> AsyncGenerator[list[StreamItem], None]:
        """Stream what is said of every request of ``subscriber``, plain tokens and deltas, one list per engine step.

        Args:
            subscriber: name of the ingress. A second attach of the same name replaces the first.
            resume: request id to the index of the next token wanted, for a stream that broke.
            leased: the subscriber calls ``renew`` every few seconds; without it the stream ends after ORPHAN_S seconds.
        """
        serving, stream = self.serving, DeltaStream(leased)
        self.subscribe(subscriber, resume, stream)
        try:
            async for deltas in stream.messages(serving.watch.is_well, lambda: serving.news.load_for(subscriber)):
                yield deltas
        finally:
            self.unsubscribe(subscriber, stream)

    def subscribe(self, subscriber: str, resume: dict[str, int], stream: SubscriberStream) -> None:
        """Say on ``stream`` what ``attach`` yields, until ``unsubscribe``; first comes what was missed, that the engine leaves
        included."""
        self.serving.news.subscribe(subscriber, resume, stream)

    def unsubscribe(self, subscriber: str, stream: SubscriberStream) -> None:
        """``stream`` has ended. Unless there is another one soon, so do the subscriber's requests."""
        self.serving.news.unsubscribe(subscriber, stream)

    def news_for(self, subscriber: str) -> EngineLoad | None:
        """What the engine takes; None while it does not answer in time itself."""
        return self.serving.news.news_for(subscriber)

    async def renew(self, subscriber: str) -> None:
        """The subscriber of a leased stream is still there."""
        self.serving.subscriptions.renew(subscriber)

    async def detach(self, subscriber: str) -> None:
        """End the subscriber's stream once it is empty."""
        self.serving.subscriptions.end(subscriber)

    async def drain(self, timeout_s: float) -> int:
        """Take no new request, let those that run finish for ``timeout_s`` seconds, and hand the rest over.

        Requests that have not begun are handed over at once. Returns how many were handed over. A second call can only make
        the time shorter, and waits for the same end.
        """
        return await self.serving.handover.drain(timeout_s)

    async def reserve(self, subscriber: str, count: int) -> PlacesKept:
        """Keep up to ``count`` places for requests that ``subscriber`` is about to bring from a full engine."""
        return PlacesKept() if self._serving is None else await self._serving.handover.reserve(subscriber, count)

    async def give_back(self, subscriber: str, number: int, count: int) -> None:
        """So many places of a reservation of ``subscriber`` it does not need."""
        self.serving.handover.give_back(subscriber, number, count)

    async def get_ready_for_grammars(self) -> None:
        """Load what a first grammar needs: requests that wait elsewhere are about to bring some."""
        await self.serving.compiler.get_ready()

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
        return await self.serving.handover.hand_back(subscriber, count, num_tokens, masked)

    async def stats(self) -> dict[str, Any]:
        """Counters: requests by state, tokens, blocks, steps, preemptions, times; those of the past count from the start.
        And where the engine computes and what holds the memory there (``Engine.figures``), and what its start took
        (``StartStages.figures``).
        """
        start = {"engine_id": self.engine_id, "pid": os.getpid(), "start": self.starting.figures()}
        if self._serving is None:
            return {**start, "state": "loading"}
        serving = self._serving
        stats = await asyncio.wrap_future(serving.engine_loop.call(_counters))
        load = serving.news.load_for("")
        return {
            **stats,
            "num_requests_arrived": load.num_arrived,
            "num_tokens_running": load.running_tokens,
            "num_tokens_waiting": load.waiting_tokens,
            "longest_wait_s": load.longest_wait_s,
            "num_kv_tokens_free": load.free_kv_tokens,
            "fingerprint": serving.info.fingerprint,
            "state": "draining" if serving.handover.is_draining else "running",
            "num_steps": serving.engine_loop.num_steps,
            "num_subscribers": len(serving.subscriptions),
            **start,
            **self.starting.file_figures(),
        }

    async def check_health(self) -> None:
        """Raise EngineDeadError when the loop died or hangs in a step."""
        if self._serving is not None:
            self._serving.watch.check()

    async def check_integrity(self) -> dict[str, Any]:
        """Raise if blocks, slots or queues are inconsistent; else the same as ``stats``."""
        await asyncio.wrap_future(self.serving.engine_loop.call(lambda engine: engine.check_integrity()))
        return await self.stats()

    async def record_timeline(self, num_steps: int, timeout_s: float) -> bytes:
        """The next ``num_steps`` steps as a Chrome trace in JSON (``actors.engine.stats.timeline``); fewer if they take longer.

        Raises:
            InvalidRequestError: the number is out of range, or another recording is under way.
        """
        call = self.serving.engine_loop.call
        timeline = await asyncio.wrap_future(call(lambda engine: engine.start_timeline(num_steps)))
        try:
            await asyncio.wait((asyncio.wrap_future(timeline.full),), timeout=timeout_s)
        finally:
            # On the loop's thread, because it may be adding a step at this moment.
            stopped = call(lambda engine: engine.stop_timeline(timeline))
        await asyncio.wrap_future(stopped)
        # 1.5 s for 10,000 steps; the token streams run on this loop.
        return await asyncio.to_thread(timeline.chrome_trace_json)

    async def shutdown(self) -> None:
        """End streams and the engine loop."""
        if self._serving is not None:
            await self._serving.close()


def _counters(engine: Engine) -> dict[str, Any]:
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
