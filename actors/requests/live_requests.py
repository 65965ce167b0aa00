"""The requests of one engine actor: those that are here, those that ended lately, and how many tokens they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from actors.requests.ended_answers import EndedAnswers, Said
from cluster.errors import StaleAttemptError
from cluster.observability.request_trace import wall_clock
from cluster.outputs import FINISHES_ELSEWHERE, GenerateReply, PlainTokens, TokenDelta
from cluster.request import EngineRequest, RequestKey

# To look for a row in a list of rows takes as long as an eighth of making a dict of them.
_FEW = 8


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request inside the actor.

    Attributes:
        done: resolved with the reply to whoever asked.
        came_at, first_at: of ``time.monotonic``; ``first_at`` is of its first token.
        waited_s: for a slot; None before it has one.
        deltas: all that its engine said about it but plain tokens.
        num_said: tokens of its answer that its engine has said, or that it came with; lags behind while plain ones come.
        grammar: its grammar, compiled; stays so because it is held here.
    """

    request: EngineRequest
    done: asyncio.Future
    came_at: float
    deltas: list[TokenDelta] = field(default_factory=list)
    num_said: int = field(init=False)
    waited_s: float | None = None
    first_at: float | None = None
    grammar: object = None
    _tokens: Sequence[int] = ()
    _first: int = 0  # in ``_tokens``, of the answer

    def __post_init__(self) -> None:
        self.num_said = len(self.request.output_token_ids)

    @property
    def key(self) -> RequestKey:
        return self.request.request_id, self.request.attempt

    @property
    def first_word(self) -> TokenDelta:
        """Says that it is here."""
        return TokenDelta(self.request.request_id, self.request.attempt, len(self.request.output_token_ids), [])

    @property
    def num_tokens(self) -> int:
        """Of its prompt and its answer so far."""
        return len(self.request.prompt_token_ids) + self.num_said

    def follow(self, token_ids: Sequence[int]) -> None:
        """Its engine has it: ``token_ids`` is the engine's own list of its prompt and answer, which has each token before that is
        said. So nobody else need keep them."""
        self._tokens, self._first = token_ids, len(self.request.prompt_token_ids)

    def remember(self, delta: TokenDelta) -> None:
        """Its engine says something about it."""
        self.deltas.append(delta)
        self.num_said = max(self.num_said, delta.index + len(delta.token_ids))

    @property
    def said(self) -> Said:
        """What its engine has said."""
        num_begun = len(self.request.output_token_ids)
        return Said(*self.key, self.deltas, num_begun, self.num_said, self._tokens, self._first)

    @property
    def marks(self) -> dict[str, float]:
        """Of ``cluster.observability.request_trace``, those that are passed here."""
        marks = {"runner": wall_clock(self.came_at)}
        if self.waited_s is not None:
            marks["scheduled"] = marks["runner"] + self.waited_s
        return marks if self.first_at is None else {**marks, "first_step": wall_clock(self.first_at)}


def fail(reply: asyncio.Future, error: BaseException) -> None:
    """Whoever asked hears of ``error``; where nobody does, asyncio need not complain."""
    if not reply.done():
        reply.set_exception(error)
        reply.exception()


class LiveRequests:
    """One key set: a request is opened, told of, and dropped in one place. Belongs to one event loop.

    Attributes:
        num_tokens: of prompt and answer so far, of requests that have not ended.
        num_ended: since the start.
        idle: set while no request is unfinished.
    """

    def __init__(self) -> None:
        self._of: dict[RequestKey, LiveRequest] = {}  # those that have not ended
        self._ended = EndedAnswers()
        # By subscriber, the last step's; what those before it said of other requests is noted with these.
        self._plain: dict[str, PlainTokens] = {}
        self._attempts: dict[str, int] = {}
        self.num_tokens = self.num_ended = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._of or key in self._ended

    def __len__(self) -> int:
        return len(self._of) + len(self._ended)

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._of)

    def subscriber(self, key: RequestKey) -> str | None:
        """Whose request it is; None if it is not here. Any thread may ask."""
        live = self._of.get(key)
        return self._ended.subscriber(key) if live is None else live.request.subscriber

    def newest_attempt(self, request_id: str) -> int:
        """-1 if the request is not here."""
        return self._attempts.get(request_id, -1)

    def open(self, request: EngineRequest, done: asyncio.Future) -> LiveRequest:
        """A request comes.

        Raises:
            StaleAttemptError: this attempt or a newer one is here.
        """
        key = request.request_id, request.attempt
        newest = self.newest_attempt(request.request_id)
        if request.attempt < newest:
            raise StaleAttemptError(f"attempt {request.attempt} of {request.request_id} is older than attempt {newest}")
        if key in self:
            raise StaleAttemptError(f"attempt {request.attempt} of {request.request_id} is already here")
        live = self._of[key] = LiveRequest(request, done, time.monotonic())
        self._attempts[request.request_id] = request.attempt
        self.num_tokens += live.num_tokens
        self.idle.clear()
        return live

    def deliver(
        self,
        delta: TokenDelta,
        waited_s: Callable[[str], float | None] | None = None,
        at: float | None = None,
    ) -> LiveRequest | None:
        """The engine says something about a request; None if nobody wants to know.

        Args:
            waited_s: how long a request waited for a slot, asked once it has had one.
            at: when it said so, of ``time.monotonic``; now if that is not known.
        """
        live = self._of.get((delta.request_id, delta.attempt))
        if live is None:
            return None
        live.remember(delta)
        if live.first_at is None and delta.token_ids:
            live.first_at = time.monotonic() if at is None else at
        if live.waited_s is None and waited_s is not None:
            live.waited_s = waited_s(delta.request_id)
        self.num_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._end(live, delta, delta.finish_reason)
        return live

    def deliver_plain(self, subscriber: str, tokens: PlainTokens) -> None:
        """In one step the engine says a token each of requests of ``subscriber``, which have not ended and follow the engine's
        lists. It is noted with a request when a step comes without it, or somebody looks: of all others that step says more."""
        last = self._plain.get(subscriber)
        if last is not None and (last.request_ids != tokens.request_ids or last.attempts != tokens.attempts):
            self._note_left(last, tokens)
        self._plain[subscriber] = tokens
        self.num_tokens += len(tokens.token_ids)

    def _note_left(self, last: PlainTokens, now: PlainTokens) -> None:
        """Note what ``last`` says of requests that ``now`` says nothing of: where requests begin and end out of step, of hundreds
        one or two."""
        attempt = last.attempts[0] if last.attempts else 0
        if last.attempts.count(attempt) < len(last.attempts) or now.attempts.count(attempt) < len(now.attempts):
            self._note(last)  # to tell them apart by both would take as long
            return
        left = list(set(last.request_ids).difference(now.request_ids))
        if len(left) <= _FEW:
            indices = [last.indices[last.request_ids.index(request_id)] for request_id in left]
        else:
            index_of = dict(zip(last.request_ids, last.indices))
            indices = [index_of[request_id] for request_id in left]
        self._note(PlainTokens(left, [attempt] * len(left), indices, []))

    def _note(self, tokens: PlainTokens) -> None:
        for key, index in zip(zip(tokens.request_ids, tokens.attempts), tokens.indices):
            live = self._of.get(key)
            if live is not None and live.num_said <= index:  # its last word may have been noted before
                live.num_said = index + 1

    def _note_all(self) -> None:
        for tokens in self._plain.values():
            self._note(tokens)
        self._plain.clear()

    def _end(self, live: LiveRequest, delta: TokenDelta, finish_reason: str) -> None:
        """``delta`` is the engine's last word."""
        if finish_reason not in FINISHES_ELSEWHERE:
            self._ended.add(live.request.subscriber, live.said)  # first, as another thread asks whose it is
        self._take_out(live)
        self.num_ended += 1
        if not live.done.done():
            num_tokens = delta.index + len(delta.token_ids)
            live.done.set_result(GenerateReply(num_tokens, finish_reason, marks=live.marks))
        if finish_reason in FINISHES_ELSEWHERE:
            self._forget_attempt(live.key)

    def fail_all(self, error: BaseException) -> None:
        """Nothing more will be said about any of them."""
        for live in self._of.values():
            fail(live.done, error)

    def unfinished(self, subscriber: str | None = None) -> Iterable[tuple[RequestKey, LiveRequest]]:
        """Those that have not ended, of all subscribers or of one."""
        for key, live in self._of.items():
            if subscriber in (None, live.request.subscriber):
                yield key, live

    def missing(self, subscriber: str, wanted: dict[str, int]) -> Iterable[list[TokenDelta]]:
        """What a subscriber's broken stream may have lost.

        Args:
            wanted: request id to the index of the next token wanted.
        """
        self._note_all()
        for request_id, index in wanted.items():
            # Who asks has opened the newest attempt, and follows no older one.
            key = request_id, self.newest_attempt(request_id)
            live = self._of.get(key)
            if live is None:
                missed = self._ended.following(key, subscriber, index)
            else:
                missed = live.said.following(index) if live.request.subscriber == subscriber else []
            if missed:
                yield missed

    def wait_s(self, key: RequestKey | None) -> float:
        """How long its client has waited for it, in seconds, in other engines, too; 0 if it is not here or has ended. Of an
        answer that others have begun: for how long it has been here."""
        live = None if key is None else self._of.get(key)
        if live is None:
            return 0.0
        here_s, came_at = time.monotonic() - live.came_at, live.request.came_at
        elsewhere = came_at and not live.request.output_token_ids
        return round(max(here_s, time.time() - came_at) if elsewhere else here_s, 3)

    def drop(self, key: RequestKey) -> None:
        """Nobody will ask for it again."""
        live = self._of.get(key)
        if live is None:
            self._ended.discard(key)
        else:
            self._note_all()
            self._take_out(live)
        self._forget_attempt(key)

    def drop_old(self) -> None:
        """Drop the answers that ended more than ``RETENTION_S`` ago."""
        self._note_all()  # also of subscribers that are gone
        for key in self._ended.old():
            self.drop(key)

    def _forget_attempt(self, key: RequestKey) -> None:
        if self._attempts.get(key[0]) == key[1]:
            del self._attempts[key[0]]

    def _take_out(self, live: LiveRequest) -> None:
        """It has not ended so far, and all that was said of it is noted."""
        del self._of[live.key]
        live.grammar = None
        self.num_tokens -= live.num_tokens
        if not self._of:
            self.idle.set()
