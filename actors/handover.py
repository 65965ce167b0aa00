"""Requests that go to other engines, and places for those that come from them: waiting ones move to where there is room, and an
engine that leaves hands over what it has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from actors.requests.live_requests import LiveRequests
from actors.requests.place_reservations import PlaceReservations
from actors.subscriptions import Subscriptions
from cluster.outputs import ENGINE_LEAVES, FINISH_HANDOVER, FINISH_MOVE, PlacesKept, StepOutput
from cluster.process.silence_clock import TICK_S
from cluster.request import RequestKey

if TYPE_CHECKING:
    from actors.engine.engine import Engine
    from actors.engine.loop import EngineLoop

logger = logging.getLogger("bireme.runner")


class Handover:
    """Belongs to one event loop.

    Args:
        engine_id: name in logs.
        engine_loop: whose thread has the requests.
        live: the same requests, as this loop knows them.
        subscriptions: of those who are told what leaves.
    """

    def __init__(
        self, engine_id: str, engine_loop: EngineLoop, live: LiveRequests, subscriptions: Subscriptions
    ) -> None:
        self._engine_id = engine_id
        self._engine_loop = engine_loop
        self._live = live
        self._subscriptions = subscriptions
        self._reservations = PlaceReservations(self._release_reserved)
        self._draining: asyncio.Task[int] | None = None
        self._drain_until = float("inf")

    @property
    def is_draining(self) -> bool:
        """The engine leaves and takes nothing any more."""
        return self._draining is not None

    @property
    def num_places_kept(self) -> int:
        """For requests that are about to come from elsewhere."""
        return len(self._reservations)

    async def reserve(self, subscriber: str, count: int) -> PlacesKept:
        """As ``RunnerActor.reserve``."""
        if self.is_draining:
            return PlacesKept()

        def run(engine: Engine) -> tuple[int, int]:
            num_tokens = engine.scheduler.num_open_tokens
            return engine.scheduler.reserve(count), num_tokens

        granted, num_tokens = await asyncio.wrap_future(self._engine_loop.call(run))
        return PlacesKept(granted, num_tokens, self._reservations.add(subscriber, granted))

    def give_back(self, subscriber: str, number: int, count: int) -> None:
        """As ``RunnerActor.give_back``."""
        self._reservations.give_back(subscriber, number, count)

    def take_place(self, subscriber: str, number: int) -> bool:
        """A request comes for a place of this reservation. Returns whether one is kept, and leaves its release to the caller."""
        return self._reservations.take(subscriber, number)

    async def hand_back(self, subscriber: str, count: int, num_tokens: int, masked: bool) -> int:
        """As ``RunnerActor.hand_back``."""
        waited_s = {key: self._live.wait_s(key) for key, _ in self._live.unfinished()}

        def choose(engine: Engine) -> list[RequestKey]:
            return engine.requests_to_move(subscriber, count, num_tokens, waited_s, masked)

        return await self._hand_over(choose, FINISH_MOVE)

    async def drain(self, timeout_s: float) -> int:
        """As ``RunnerActor.drain``."""
        self._drain_until = min(self._drain_until, time.monotonic() + timeout_s)
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        return await asyncio.shield(self._draining)

    async def _drain(self) -> int:
        self._subscriptions.say_to_all([ENGINE_LEAVES])
        moved = await self._hand_over(
            lambda engine: [(s.request.request_id, s.request.attempt) for s in engine.scheduler.waiting]
        )
        idle = asyncio.get_running_loop().create_task(self._live.idle.wait())
        while not idle.done() and time.monotonic() < self._drain_until:
            await asyncio.wait((idle,), timeout=TICK_S)
        idle.cancel()
        moved += await self._hand_over(lambda engine: list(engine.scheduler.request_keys()))
        logger.info("%s drained: %d requests handed over", self._engine_id, moved)
        return moved

    async def _hand_over(
        self, choose: Callable[[Engine], Iterable[RequestKey]], finish_reason: str = FINISH_HANDOVER
    ) -> int:
        """End the requests whose keys ``choose(engine)`` returns, so that their ingress continues them elsewhere."""

        def run(engine: Engine) -> int:
            ended = [engine.abort(*key) for key in choose(engine)]
            deltas = [delta._replace(finish_reason=finish_reason) for delta in ended if delta is not None]
            self._subscriptions.publish(StepOutput(deltas))
            return len(deltas)

        return await asyncio.wrap_future(self._engine_loop.call(run))

    def _release_reserved(self, count: int) -> None:
        self._engine_loop.call(lambda engine: engine.scheduler.release_reserved(count))
