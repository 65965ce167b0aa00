"""How a request comes to its engine, and how whoever sent it ends it: begun by its call or ahead of it, sent to the engine's
thread once its grammar is compiled, answered when it has ended or was refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.handover import Handover
from actors.paced_call import PacedCall
from actors.requests.arrivals import Arrivals
from actors.requests.grammar_compiler import GrammarCompiler
from actors.requests.live_requests import LiveRequest, LiveRequests, fail
from actors.requests.requests_ahead import Reply, RequestsAhead
from actors.subscriptions import Subscriptions
from cluster.errors import StaleAttemptError
from cluster.outputs import (
    FINISH_ABORT,
    FINISH_HANDOVER,
    AttachRequired,
    EngineInfo,
    GenerateReply,
    NotAdmitted,
    StepOutput,
    TokenDelta,
)
from cluster.request import EngineRequest, RequestKey

if TYPE_CHECKING:
    from actors.engine.engine import Engine
    from actors.engine.loop import EngineLoop

logger = logging.getLogger("bireme.runner")


class RequestIntake:
    """Made on the event loop to which it belongs.

    Args:
        info: of the engine.
        engine_loop: whose thread takes the requests.
        live: where they are kept, from here on until after their end.
        arrivals: where they are while they are on their way to the thread.
        compiler: of their grammars.
        handover: says whether the engine leaves, and whether a place is kept for a request.
        subscriptions: of those who send requests.
        keeping_up: tells them what the engine takes.

    Attributes:
        ahead: requests whose calls are yet to come.
    """

    def __init__(
        self,
        info: EngineInfo,
        engine_loop: EngineLoop,
        live: LiveRequests,
        arrivals: Arrivals,
        compiler: GrammarCompiler,
        handover: Handover,
        subscriptions: Subscriptions,
        keeping_up: PacedCall,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._info = info
        self._engine_loop = engine_loop
        self._live = live
        self._arrivals = arrivals
        self._compiler = compiler
        self._handover = handover
        self._subscriptions = subscriptions
        self._keeping_up = keeping_up
        self.ahead = RequestsAhead(self.abort)

    def begin(self, request: EngineRequest) -> None:
        """As ``RunnerActor.begin``."""
        key = request.request_id, request.attempt
        is_known = key in self.ahead or self._live.newest_attempt(request.request_id) >= request.attempt
        if request.subscriber not in self._subscriptions or is_known:
            return
        if self._handover.is_draining:
            index = len(request.output_token_ids)
            leaves = TokenDelta(*key, index, [], finish_reason=FINISH_HANDOVER)
            self._subscriptions.say(request.subscriber, [leaves])
            return
        self.ahead.begin(key, self._begin(request))

    async def generate(self, request: EngineRequest) -> GenerateReply | AttachRequired | NotAdmitted:
        """As ``RunnerActor.generate``."""
        key = request.request_id, request.attempt
        reply = self.ahead.take(key)
        if reply is None:
            reply = self._begin(request)
        try:
            return await reply
        except asyncio.CancelledError:
            self.abort(key)
            raise

    def give_up(self, subscriber: str, key: RequestKey) -> None:
        """As ``RunnerActor.give_up``."""
        if self._live.subscriber(key) == subscriber:
            self.abort(key)

    def abort(self, key: RequestKey) -> None:
        """End a request if it is here."""
        if not self._compiler.abort(key):
            self._engine_loop.abort(*key)

    def abort_all_of(self, subscriber: str) -> None:
        """End the requests of a subscriber that is gone."""
        for key, _ in list(self._live.unfinished(subscriber)):
            logger.warning("request %s attempt %d: its ingress is gone; aborted", *key)
            self.abort(key)

    def _begin(self, request: EngineRequest) -> Reply:
        """Begin one request; what ``generate`` is answered with. It has no task of its own: the engine's thread waits while this
        thread computes."""
        reply: Reply = self._loop.create_future()
        if self._handover.is_draining:
            reply.set_result(NotAdmitted(self._info.engine_id, "the engine drains"))
            return reply
        if request.subscriber not in self._subscriptions:
            reply.set_result(AttachRequired(self._info.engine_id, None, self._info.fingerprint))
            return reply
        before = self._live.newest_attempt(request.request_id)
        try:
            live = self._live.open(request, reply)
        except StaleAttemptError as error:
            fail(reply, error)
            return reply
        if 0 <= before < request.attempt:
            self.abort((request.request_id, before))
        try:
            self._subscriptions.say(request.subscriber, [live.first_word])
            self._keeping_up.ask()
            if request.params.is_masked:
                self._compile(live)
            else:
                self._submit(live)
        except Exception as error:  # who calls goes on with other requests
            logger.exception("request %s attempt %d cannot begin", *live.key)
            self._refuse(live, error)
        return reply

    def _compile(self, live: LiveRequest) -> None:
        def end(finish_reason: str) -> None:
            self._subscriptions.publish(StepOutput([live.first_word._replace(finish_reason=finish_reason)]))

        def compiled(grammar: object) -> None:
            live.grammar = grammar
            if self._handover.is_draining:
                end(FINISH_HANDOVER)
            else:
                self._submit(live)

        self._compiler.compile(
            live.request, compiled, lambda: end(FINISH_ABORT), lambda error: self._refuse(live, error)
        )

    def _submit(self, live: LiveRequest) -> None:
        def refused(error: BaseException) -> None:
            self._loop.call_soon_threadsafe(self._refuse, live, error)

        self._engine_loop.post(self._adding(live), refused)

    def _adding(self, live: LiveRequest) -> Callable[[Engine], None]:
        """What the engine's thread is to do about a request that comes, to the place that was kept for it if there is one. Who
        comes too late for its place is like any other."""
        request = live.request
        is_expected = self._handover.take_place(request.subscriber, request.place)
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
            self._keeping_up.now()

        def run(engine: Engine) -> None:
            if is_expected:
                engine.scheduler.release_reserved(1)
            live.follow(engine.add_request(request))
            arrival.taken_at = engine.clock.now()
            arrivals.num_taken += 1

        return run

    def _refuse(self, live: LiveRequest, error: BaseException) -> None:
        """The engine does not have it."""
        self._live.drop(live.key)
        self._arrivals.forget(live.key)
        fail(live.done, error)
        self._keeping_up.ask()
