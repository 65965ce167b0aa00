"""Moves requests of one ingress that wait in full engines to engines with open places.

The target is asked first, and keeps the places; then the source gives up so many waiting requests, each of which ends its attempt
there as moved; the next attempts go to the target. What decides is ``cluster.scaling.balance``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from cluster.process.logs import Seldom, log_fields
from cluster.scaling.balance import BalanceView, Move, moves
from cluster.scaling.inputs import MAX_LOAD_AGE_S
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStream, TokenStreams

logger = logging.getLogger("ray.serve")

# While there is something to move: an engine that had no place, or nobody worth moving, is asked again.
_LOOK_AGAIN_S = 0.2
_CALL_TIMEOUT_S = 1.0


class Balancer:
    """Belongs to one event loop."""

    def __init__(self, subscriber: str, streams: TokenStreams, choices: EngineChoices) -> None:
        self._subscriber = subscriber
        self._streams = streams
        self._choices = choices
        self._targets: dict[str, deque[str]] = {}
        self._task: asyncio.Task | None = None
        self._may_complain = Seldom()

    def changed(self) -> None:
        """An engine has said how it is."""
        if self._task is None and moves(self._views()):
            self._task = asyncio.get_running_loop().create_task(self._balance())

    def target(self, source: str) -> str:
        """The engine that keeps a place for the next request which ``source`` gave up as moved; empty if none does any more."""
        targets = self._targets.get(source)
        return targets.popleft() if targets else ""

    async def close(self) -> None:
        """Stop moving."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _views(self) -> list[BalanceView]:
        views = []
        for stream in self._streams:
            load = stream.load
            usable = stream.alive and not stream.silent and not stream.leaves
            if load is not None and usable and stream.load_age_s <= MAX_LOAD_AGE_S:
                is_target = stream.engine_id in self._choices.engines and not self._choices.is_avoided(stream.engine_id)
                places = load.open_places if is_target else 0
                views.append(BalanceView(stream.engine_id, load.num_movable, load.oldest_wait_s, places))
        return views

    async def _balance(self) -> None:
        try:
            while wanted := moves(self._views()):
                for move in wanted:
                    await self._make(move)
                await asyncio.sleep(_LOOK_AGAIN_S)
        except Exception:  # requests that wait go on waiting where they are
            if self._may_complain():
                logger.exception("balancing failed")
        finally:
            self._task = None

    async def _make(self, move: Move) -> None:
        source, target = self._streams.of(move.source), self._streams.of(move.target)
        if source is None or target is None:
            return
        places, num_tokens = await self._answer(
            target.runner.reserve.remote(self._subscriber, move.num_requests), (0, 0)
        )
        if not places:
            return
        # Requests end their attempts there perhaps before the call is answered.
        self._targets[move.source] = deque([move.target] * places)
        moved = await self._answer(source.runner.hand_back.remote(self._subscriber, places, num_tokens), 0)
        self._trim(source, target, places, moved)
        if moved:
            logger.info(log_fields(event="moved", source=move.source, target=move.target, requests=moved))

    def _trim(self, source: TokenStream, target: TokenStream, places: int, moved: int) -> None:
        """Give places back that nobody needs."""
        targets = self._targets[source.engine_id]
        for _ in range(min(places - moved, len(targets))):
            targets.pop()
        if moved < places:
            target.runner.give_back.remote(self._subscriber, places - moved)

    async def _answer(self, call, otherwise):
        """Of an engine; ``otherwise`` if it has none in time, or is gone."""
        try:
            return await asyncio.wait_for(call, _CALL_TIMEOUT_S)
        except Exception as error:
            if self._may_complain():
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                logger.warning("event=move_failed: %s", why)
            return otherwise
