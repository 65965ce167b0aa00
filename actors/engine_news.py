"""What subscribers hear beside their tokens: what they missed, and what the engine takes. For both, the books are kept up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from actors.delta_stream import SubscriberStream
from actors.engine_load import EngineLoads
from actors.requests.arrivals import Arrivals
from actors.requests.live_requests import LiveRequests
from actors.subscriptions import Subscriptions
from cluster.outputs import ENGINE_LEAVES, EngineLoad, TokenDelta

logger = logging.getLogger("bireme.runner")

# A subscriber that does not come back within this time is gone, and nobody wants its tokens.
ORPHAN_S = 10.0


class EngineNews:
    """Belongs to one event loop.

    Args:
        subscriptions: the streams, and what was said that is not in the books yet.
        live, arrivals: the books.
        loads: what the engine takes.
        is_well: the engine does not hang.
        is_draining: it leaves.
        take_queue_time: how long a request waited for its slot, once.
        stage_ended: told of the stages of the start that end here, again and again.
        abandoned: told which subscriber did not come back.
    """

    def __init__(
        self,
        subscriptions: Subscriptions,
        live: LiveRequests,
        arrivals: Arrivals,
        loads: EngineLoads,
        is_well: Callable[[], bool],
        is_draining: Callable[[], bool],
        take_queue_time: Callable[[str], float | None],
        stage_ended: Callable[[str], None],
        abandoned: Callable[[str], None],
    ) -> None:
        self._subscriptions = subscriptions
        self._live = live
        self._arrivals = arrivals
        self._loads = loads
        self._is_well = is_well
        self._is_draining = is_draining
        self._take_queue_time = take_queue_time
        self._stage_ended = stage_ended
        self._abandoned = abandoned

    def read(self) -> None:
        """Take into the books what the engine has said."""
        is_heard = False
        for at, output in self._subscriptions.take():
            for subscriber, tokens in output.plain.items():
                self._live.deliver_plain(subscriber, tokens)
            for delta in output.deltas:
                if self._live.deliver(delta, self._take_queue_time, at) is None:
                    continue
                is_heard = True
                if delta.finish_reason is not None:
                    self._arrivals.forget((delta.request_id, delta.attempt))
        if is_heard:
            self._stage_ended("first_token")

    def keep_up(self) -> None:
        """``read``, and tell subscribers what the engine takes if that is news."""
        self.read()
        if self._is_well():
            self._subscriptions.tell(self._loads.now())

    def load_for(self, subscriber: str) -> EngineLoad:
        """What the engine takes, as this subscriber is told it."""
        self.read()
        return self._loads.now()(subscriber)

    def news_for(self, subscriber: str) -> EngineLoad | None:
        """As ``load_for``; None while the engine does not answer in time itself."""
        return self.load_for(subscriber) if self._is_well() else None

    def subscribe(self, subscriber: str, resume: dict[str, int], stream: SubscriberStream) -> None:
        """As ``RunnerActor.subscribe``."""

        def missed() -> Iterator[list[TokenDelta]]:
            self.read()
            yield from self._live.missing(subscriber, resume)
            if self._is_draining():
                yield [ENGINE_LEAVES]

        self._subscriptions.open(subscriber, stream, missed)
        self._stage_ended("seen")

    def unsubscribe(self, subscriber: str, stream: SubscriberStream) -> None:
        """As ``RunnerActor.unsubscribe``."""
        if self._subscriptions.forget(subscriber, stream):
            asyncio.get_running_loop().call_later(ORPHAN_S, self._abandon, subscriber)

    def end_leases(self) -> None:
        """End the streams of those that were not heard of. To be called every TICK_S seconds."""
        for subscriber in self._subscriptions.end_leases(ORPHAN_S):
            logger.warning("subscriber %s was not heard of for %g s; detached", subscriber, ORPHAN_S)
            self._abandon(subscriber)

    def _abandon(self, subscriber: str) -> None:
        if subscriber not in self._subscriptions:
            self._abandoned(subscriber)
