"""All sequences of one HTTP request, read as one series of events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from cluster.api_errors import ApiError
from cluster.outputs import TokenDelta
from deployments.answers.choice import Choice
from deployments.answers.token_lanes import TokenLanes
from deployments.routing.sequence_client import SequenceClient

logger = logging.getLogger("ray.serve")

# Steps of sequences that are turned into text in one go: about ten microseconds each, more with stop strings.
_READ_AT_ONCE = 512


class Generation:
    """Runs the sequences of one request and feeds their outputs.

    What nobody has read yet waits in one queue, which the answer's own length bounds. A slow reader gets much of it as one piece,
    but others have their turn after each few hundred steps.

    Attributes:
        choices: one a sequence.
        when_closed: each is called once, when it is closed.
        take: asked, if it is set while ``read`` waits, whether it takes a token of a choice of which nothing else is said; what
            it takes is not read.
        lanes: open while ``take`` may be asked, which they pass by.
    """

    def __init__(self, client: SequenceClient, choices: Sequence[Choice]) -> None:
        self.choices = choices
        self.when_closed: list[Callable[[], None]] = []
        self.take: Callable[[Choice, int], bool] | None = None
        self.lanes: TokenLanes | None = None
        self._client = client
        self._unread: deque[tuple[Choice, TokenDelta]] = deque()
        self._has_more = False
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._num_open = sum(choice.output.finish_reason is None for choice in choices)

    @property
    def finished(self) -> bool:
        """Every sequence is over and was read."""
        return self._num_open == 0

    @property
    def fingerprint(self) -> str:
        """Of the engine that made the tokens; empty before the first."""
        # Most answers have one choice, and each of its tokens asks.
        first = self.choices[0].entry.fingerprint
        return first or next((choice.entry.fingerprint for choice in self.choices if choice.entry.fingerprint), "")

    def start(self) -> None:
        """Submit every sequence that is not finished.

        Raises:
            ApiError: 429, the engines have no room for all of them; none was submitted.
        """
        has_begun = any(choice.entry.attempt for choice in self.choices)
        self._count_arrivals()
        if not has_begun:
            try:
                self._client.check_room(self._num_open, self.choices[0].entry.tenant)
            except ApiError:
                self.close()
                raise
        for choice in self.choices:
            if choice.output.finish_reason is None:
                choice.submission = self._client.submit(choice.entry, partial(self._put, choice), self.fail)
                choice.submission.deliver_token = partial(self.put_token, choice)
        if len(self.choices) > 1:
            self.accept()

    def _count_arrivals(self) -> None:
        num_prompt_tokens = 0
        for choice in self.choices:
            if choice.output.finish_reason is None:
                choice.times.is_counted = True
                num_prompt_tokens += len(choice.entry.prompt_token_ids)
        if self._num_open:
            self._client.metrics.count_arrivals(self._num_open, num_prompt_tokens)

    def accept(self) -> None:
        """From now on the sequences wait for room in a full queue; none of them is refused any more."""
        for choice in self.choices:
            if choice.submission is not None:
                choice.submission.is_admitted = True

    async def read(self, patience_s: float | None = None) -> dict[int, str]:
        """Wait for tokens; the new text of every sequence that got any, by index (empty text if none was released yet). Nothing
        if ``patience_s`` seconds have passed without any.

        Raises:
            ApiError: a sequence cannot be completed, and what came before was read; the whole request is over.
        """
        if self._has_more and self._unread:
            await asyncio.sleep(0)
        if not self._unread and self._error is None and self._num_open:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = None if patience_s is None else loop.call_later(patience_s, self._wake)
            try:
                if self.lanes is not None:
                    self.lanes.open()
                await self._waiter
            finally:
                self._waiter = None
                if self.lanes is not None:
                    self.lanes.close()
                if timer is not None:
                    timer.cancel()
        if self._error is not None and not self._unread:
            raise self._error
        if len(self._unread) == 1:
            # As below, for most reads of most answers.
            choice, delta = self._unread[0]
            if choice.output.finish_reason is None and delta.finish_reason is None:
                self._unread.clear()
                self._has_more = False
                return {choice.index: self._push(choice, delta)}
        texts: dict[int, str] = {}
        for _ in range(min(len(self._unread), _READ_AT_ONCE)):
            choice, delta = self._unread.popleft()
            if choice.output.finish_reason is not None:
                continue
            texts[choice.index] = texts.get(choice.index, "") + self._push(choice, delta)
        self._has_more = bool(self._unread)
        return texts

    def _push(self, choice: Choice, delta: TokenDelta) -> str:
        output = choice.output
        text = output.push(delta)
        if output.finish_reason is not None:
            self._num_open -= 1
            choice.times.finished(output.finish_reason, len(output.token_ids))
            if self._num_open == 0:
                self._observe_longest()
            if delta.finish_reason is None and choice.submission is not None:
                self._client.cancel(choice.submission)
        return text

    def _observe_longest(self) -> None:
        """The longest answer to each prompt; the choices of one have the very same list of tokens before them."""
        longest: dict[int, int] = {}
        for choice in self.choices:
            prompt = id(choice.entry.prompt_token_ids)
            longest[prompt] = max(longest.get(prompt, 0), len(choice.output.token_ids))
        for num_tokens in longest.values():
            self._client.metrics.count_longest(num_tokens)

    def close(self) -> None:
        """Give up what is not finished; safe to call at any time."""
        self._cancel()
        for choice in self.choices:
            choice.times.given_up(self._error is not None and self._error.status >= 500)
            # It leads back here: what is over is freed at once, and leaves nothing to the garbage collector.
            choice.submission = None
        while self.when_closed:
            self.when_closed.pop(0)()

    def give_up(self, error: ApiError) -> None:
        """Nothing more comes; ``read`` raises ``error`` once what came before was read."""
        self._cancel()
        self.fail(error)

    def _cancel(self) -> None:
        for choice in self.choices:
            if choice.submission is not None:
                self._client.cancel(choice.submission)

    def _put(self, choice: Choice, delta: TokenDelta) -> None:
        choice.times.arrived(bool(delta.token_ids))
        self._unread.append((choice, delta))
        self._wake()

    def put_token(self, choice: Choice, index: int, token: int) -> None:
        """The next token of a choice came, of which nothing else is said."""
        choice.times.arrived(True)
        waiter = self._waiter
        if self.take is not None and waiter is not None and not waiter.done():
            try:
                if self.take(choice, token):
                    return
            except Exception:  # the other requests of this message want their tokens
                logger.exception("request %s failed", choice.entry.request_id)
                self.give_up(ApiError(500, "internal error; the server's log has the details", code="internal_error"))
                return
        entry = choice.entry
        self._unread.append((choice, TokenDelta(entry.request_id, entry.attempt, index, [token])))
        self._wake()

    def fail(self, error: ApiError) -> None:
        """``read`` raises this once what came before was read."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        # What comes from now on waits behind what is to be read.
        if self.lanes is not None:
            self.lanes.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
