"""Moves requests of one ingress that wait in full engines to engines with open places, and else into one line.

The target is asked first, and keeps the places; then the source gives up so many waiting requests, each of which ends its attempt
there as moved; the next attempts go to the target. Who goes to a line needs no place: a queue is filled only in part. What
decides is ``cluster.scaling.balance``. Moves run beside each other: what one of them still asks for is not counted for another,
and who waits at an engine that does not answer is given to the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.requests.place_reservations import RESERVED_FOR_S
from cluster.outputs import EngineLoad, PlacesKept
from cluster.process.logs import Seldom, log_fields
from cluster.scaling.balance import LINE_SHARE, MOST_OF_A_LINE, BalanceView, Move, line_moves, moves
from cluster.scaling.inputs import MAX_LOAD_AGE_S
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStream, TokenStreams

logger = logging.getLogger("ray.serve")

_MOST_AT_ONCE = 16
_CALL_TIMEOUT_S = 1.0
# An engine that has not answered by then does not keep others waiting; with the time until engines speak again, half a second.
_PATIENCE_S = 0.25
# An engine that had no place, or nobody worth moving, is asked again then; one that did not answer, later.
_LOOK_AGAIN_S = 0.2
_ASK_SILENT_AGAIN_S = 2.0
_ASK_GRAMMARS_AGAIN_S = 60.0
# A request that waits in a line needs no memory.
_ANY_NUM_TOKENS = 2**40


@dataclass(slots=True, eq=False)
class _UnderWay:
    """A move that has begun.

    Attributes:
        num_places: at the target, asked for or kept.
        num_leaving: requests that the source is to give up, or gave up.
        in_line: they are to wait at the target, where no place is open.
        granted_at: when the target said that it keeps the places, which it does for ``RESERVED_FOR_S``.
        number: of the reservation there.
        target_said, source_said: what they had said last when they answered: their next word counts what the move changed.
    """

    move: Move
    source: TokenStream
    target: TokenStream
    num_places: int
    num_leaving: int
    in_line: bool = False
    begun_at: float = field(default_factory=time.monotonic)
    granted_at: float = 0.0
    number: int = 0
    target_said: EngineLoad | None = None
    source_said: EngineLoad | None = None
    is_over: bool = False

    @property
    def claims_places(self) -> bool:
        """Whether the target's last word does not count the places."""
        return self.target_said is None or self.target.load is self.target_said

    @property
    def claims_requests(self) -> bool:
        """Whether the source's last word still has the requests; of one that waits for too long others may have them."""
        if self.source_said is not None:
            return self.source.load is self.source_said
        return time.monotonic() - self.begun_at < _PATIENCE_S


class Balancer:
    """Belongs to one event loop.

    Args:
        has_masked: whether requests under a grammar or a budget wait in an engine.
        max_queue_share: of an engine's queue, what the requests of one tenant may hold.
    """

    def __init__(
        self,
        subscriber: str,
        streams: TokenStreams,
        choices: EngineChoices,
        has_masked: Callable[[TokenStream], bool],
        max_queue_share: float = 1.0,
    ) -> None:
        self._subscriber = subscriber
        self._streams = streams
        self._choices = choices
        self._has_masked = has_masked
        # Never more than a tenant's share, so that nobody is refused whoever they are.
        self._line_share = min(LINE_SHARE, max_queue_share)
        self._told_of_grammars: dict[str, float] = {}  # when an engine was told to get ready for them
        self._under_way: list[_UnderWay] = []
        self._kept: dict[str, deque[_UnderWay]] = {}  # by source: the move of each place that nobody has come for
        self._resting: dict[str, float] = {}  # until when an engine is left alone
        self._tasks: set[asyncio.Task] = set()
        self._is_closed = False
        self._may_complain = Seldom()

    def changed(self) -> None:
        """An engine has said how it is, or a move has gone on."""
        self._under_way = [
            one for one in self._under_way if not one.is_over or self._claims_places(one) or self._claims_requests(one)
        ]
        self._forget_old()
        views = self._views()
        for move in moves(views):
            self._begin(move)
        giving = {one.move.source for one in self._under_way if not one.is_over or self._claims_requests(one)}
        for move in line_moves([view._replace(num_movable=0) if view.engine_id in giving else view for view in views]):
            self._begin(move, in_line=True)

    def _begin(self, move: Move, in_line: bool = False) -> None:
        source, target = self._streams.of(move.source), self._streams.of(move.target)
        if source is None or target is None or source.load is None or len(self._tasks) >= _MOST_AT_ONCE:
            return
        if in_line:
            # Requests of other ingresses among them count, and go by those.
            count = min(MOST_OF_A_LINE, max(move.num_requests, source.load.line_length))
            granted = PlacesKept(count, _ANY_NUM_TOKENS)
            self._start(_UnderWay(move, source, target, count, count, in_line=True), granted)
        else:
            self._start(_UnderWay(move, source, target, move.num_requests, move.num_requests))

    def _start(self, one: _UnderWay, granted: PlacesKept | None = None) -> None:
        self._under_way.append(one)
        if not one.in_line:
            self._choices.claimed = self._choices.claimed + Counter({one.move.target: one.num_places})
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._make(one, granted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        loop.call_later(_PATIENCE_S, self._look_at, one)

    def target(self, source: str) -> tuple[str, int]:
        """The engine that keeps a place for the next request which ``source`` gave up as moved, and the reservation's number; or
        in whose line it is to stand, and 0; empty and 0 if there is none any more."""
        kept = self._kept.get(source)
        if kept is None:
            return "", 0
        self._drop_expired(kept)
        if not kept:
            return "", 0
        one = next((one for one in kept if not one.in_line), kept[0])
        kept.remove(one)
        return one.move.target, one.number

    @staticmethod
    def _drop_expired(kept: deque[_UnderWay]) -> None:
        """Who was to come for the older ones has gone, or failed; the target has them again."""
        while kept and time.monotonic() - kept[0].granted_at > RESERVED_FOR_S:
            kept.popleft()

    def _forget_old(self) -> None:
        """Engines come and go for as long as the ingress lives."""
        for kept in self._kept.values():
            self._drop_expired(kept)
        self._kept = {engine_id: kept for engine_id, kept in self._kept.items() if kept}
        self._told_of_grammars = {
            engine_id: at for engine_id, at in self._told_of_grammars.items() if self._streams.of(engine_id) is not None
        }

    async def close(self) -> None:
        """Stop moving."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _views(self) -> list[BalanceView]:
        places: Counter[str] = Counter()
        coming: Counter[str] = Counter()  # into lines
        leaving: Counter[str] = Counter()
        for one in self._under_way:
            (coming if one.in_line else places)[one.move.target] += one.num_places * self._claims_places(one)
            leaving[one.move.source] += one.num_leaving * self._claims_requests(one)
        self._choices.claimed = places
        now, views = time.monotonic(), []
        self._resting = {engine_id: until for engine_id, until in self._resting.items() if now < until}
        for stream in self._streams:
            load, engine_id = stream.load, stream.engine_id
            if load is not None and self._is_usable(stream):
                rests = engine_id in self._resting
                is_target = engine_id in self._choices.engines and not self._choices.is_avoided(engine_id)
                has_places = is_target and not rests and not load.num_movable
                num_in_queue = load.num_waiting + coming[engine_id]
                views.append(
                    BalanceView(
                        engine_id,
                        num_movable=0 if rests else max(0, load.num_movable - leaving[engine_id]),
                        oldest_wait_s=load.oldest_wait_s,
                        open_places=max(0, load.open_places - places[engine_id]) if has_places else 0,
                        line_length=load.line_length,
                        longest_wait_s=load.longest_wait_after(stream.load_age_s),
                        line_room=int(self._line_share * load.max_queued) - num_in_queue if is_target else 0,
                    )
                )
        return views

    def _claims_places(self, one: _UnderWay) -> bool:
        return one.claims_places and self._is_open(one.target)

    def _claims_requests(self, one: _UnderWay) -> bool:
        return one.claims_requests and self._is_open(one.source)

    def _is_open(self, stream: TokenStream) -> bool:
        """Whether words still come on it. What an engine says on the next one counts what was moved before."""
        return stream.alive and self._streams.of(stream.engine_id) is stream

    @staticmethod
    def _is_usable(stream: TokenStream) -> bool:
        return stream.alive and not stream.silent and not stream.leaves and stream.load_age_s <= MAX_LOAD_AGE_S

    def _look_at(self, one: _UnderWay) -> None:
        """A move has taken long: others may have who waits there."""
        if not one.is_over:
            self.changed()

    async def _make(self, one: _UnderWay, granted: PlacesKept | None) -> None:
        try:
            if granted is None:
                granted = await self._reserve(one, one.num_places)
            await self._move(one, granted)
        except Exception:  # requests that wait go on waiting where they are
            if self._may_complain():
                logger.exception("balancing failed")
        finally:
            one.is_over = True
            one.target_said, one.source_said = one.target_said or one.target.load, one.source_said or one.source.load

    async def _move(self, one: _UnderWay, granted: PlacesKept | None) -> None:
        source, target = one.source, one.target
        one.target_said, one.granted_at = target.load, time.monotonic()
        places, num_tokens, one.number = granted or PlacesKept()
        one.num_places = places
        if not places:
            one.num_leaving = 0
            self._rest(target, is_silent=granted is None)
            return
        # Requests end their attempts there perhaps before the call is answered.
        kept = self._kept.setdefault(source.engine_id, deque())
        kept.extend([one] * places)
        one.num_leaving = places
        masked = self._is_ready_for(source, target)
        call = asyncio.ensure_future(source.runner.hand_back.remote(self._subscriber, places, num_tokens, masked))
        await asyncio.wait((call,), timeout=_PATIENCE_S)
        if not call.done() and not one.in_line and self._others_wait(source):
            self._give_back(one, kept.count(one))  # the others have been come for
            places = 0
        # A long step of the source keeps the answer; the places are kept for so long, too.
        moved = await self._answer(call, None, one.granted_at + RESERVED_FOR_S - time.monotonic())
        one.source_said, one.num_leaving = source.load, moved or 0
        self._give_back(one, places - (moved or 0))
        if moved:
            to = {"target": target.engine_id, "to": "line" if one.in_line else "place"}
            logger.info(log_fields(event="moved", source=source.engine_id, **to, requests=moved))
        else:
            self._rest(source, is_silent=moved is None)

    async def _reserve(self, one: _UnderWay, count: int) -> PlacesKept | None:
        """What the target grants; None if it has no answer in time. The move goes on when it has one later."""
        call = asyncio.ensure_future(one.target.runner.reserve.remote(self._subscriber, count))
        try:
            return await self._answer(asyncio.shield(call), None)
        finally:
            if not call.done():
                call.add_done_callback(lambda late: self._came_late(one, late))

    def _came_late(self, one: _UnderWay, call: asyncio.Future[PlacesKept]) -> None:
        """The target is not silent any more. An engine answers when a step ends, and where each takes longer than a call may,
        all its grants come late: who still waits at the source goes there now, or the target gets the places back."""
        if call.cancelled() or call.exception() is not None:
            return
        self._resting.pop(one.target.engine_id, None)
        granted = call.result()
        count = (
            min(granted.places, self._num_left(one.source)) if self._is_open(one.target) and not self._is_closed else 0
        )
        if granted.places > count:
            one.target.runner.give_back.remote(self._subscriber, granted.number, granted.places - count)
        if count:
            self._start(_UnderWay(one.move, one.source, one.target, count, count), granted._replace(places=count))

    def _num_left(self, source: TokenStream) -> int:
        """How many wait there whom no other move is about to take."""
        if source.load is None or not self._is_open(source) or source.silent:
            return 0
        claims = (one.num_leaving for one in self._under_way if one.source is source and self._claims_requests(one))
        return max(0, source.load.num_movable - sum(claims))

    def _is_ready_for(self, source: TokenStream, target: TokenStream) -> bool:
        """Whether requests under a grammar may go there. A new engine is told to get ready if some wait: that takes seconds, in
        which the full one may have begun them."""
        if target.load is None or target.load.ready_for_grammars:
            return True
        now = time.monotonic()
        is_told = now < self._told_of_grammars.get(target.engine_id, 0.0) + _ASK_GRAMMARS_AGAIN_S
        if not is_told and self._has_masked(source):
            self._told_of_grammars[target.engine_id] = now
            target.runner.get_ready_for_grammars.remote()
        return False

    def _others_wait(self, source: TokenStream) -> bool:
        """Whether somebody waits at another engine who could have places that are kept for requests of ``source``."""
        others = (stream for stream in self._streams if stream is not source and self._is_usable(stream))
        return any(stream.load is not None and stream.load.line_length for stream in others)

    def _give_back(self, one: _UnderWay, count: int) -> None:
        """Give so many of the places back that nobody has come for; those of another move of the source where this one has none
        left, since who gave them up does not matter to the requests. What is too old the target has taken back by itself."""
        kept, unused = self._kept.get(one.move.source, deque()), Counter[_UnderWay]()
        if one not in kept and time.monotonic() - one.granted_at >= RESERVED_FOR_S:
            return
        for _ in range(min(count, len(kept))):
            of = one if one in kept else kept[-1]
            kept.remove(of)
            unused[of] += 1
        for of, places in unused.items():
            if of.in_line:
                continue
            of.target.runner.give_back.remote(self._subscriber, of.number, places)

    def _rest(self, stream: TokenStream, is_silent: bool) -> None:
        seconds = _ASK_SILENT_AGAIN_S if is_silent else _LOOK_AGAIN_S
        self._resting[stream.engine_id] = time.monotonic() + seconds

    async def _answer(self, call, otherwise, timeout_s=_CALL_TIMEOUT_S):
        """Of an engine; ``otherwise`` if it has none in time, or is gone."""
        try:
            return await asyncio.wait_for(call, timeout_s)
        except Exception as error:
            if self._may_complain():
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                logger.warning("event=move_failed: %s", why)
            return otherwise
