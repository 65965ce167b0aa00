"""Serve's calls of requests that were sent ahead: one for all that went to an engine in a moment.

A call of Serve's costs ingress and replica two milliseconds of CPU time (``docs/lab/serving.md``), and what it is for is not
urgent: Serve counts it, and its reply is how an engine refuses a request, or says when it began. So it can wait until the first
tokens have come, and several requests share one. Each is counted, refused and given up by itself.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.replies import EngineLost
from cluster.request import Followed, RequestKey
from deployments.ray_private.serve import CallOfRequests
from deployments.routing.engine_replies import said, said_by
from deployments.routing.submission import Submission
from deployments.routing.waiting.turns import Turns

# An engine waits ten seconds for the call of what came ahead, and a client a second until its request is passed on.
FOLLOW_AFTER_S = 0.25


class SharedCalls:
    """Belongs to one event loop.

    Args:
        turns: when there is nothing better to do.
        is_wanted: whether a request is to have a call, asked when that is made.
        made: told of each request whose call is under way; ``Submission.call`` has it.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        turns: Turns,
        is_wanted: Callable[[Submission], bool],
        made: Callable[[Submission], None],
    ) -> None:
        self._handle = handle
        self._streaming: Any = None
        self._turns = turns
        self._is_wanted = is_wanted
        self._made = made
        self._next: list[Submission] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._calls: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Calls that are not over."""
        return len(self._calls)

    def add(self, submission: Submission, at_once: bool = False) -> None:
        """It was sent ahead: make a call for it soon, or as soon as there is a turn."""
        self._next.append(submission)
        if at_once:
            self._due()
        elif self._timer is None and not self._is_due:
            self._timer = asyncio.get_running_loop().call_later(FOLLOW_AFTER_S, self._due)

    async def close(self) -> None:
        """Cancel all."""
        if self._timer is not None:
            self._timer.cancel()
        self._next.clear()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)

    def _due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_due:
            self._is_due = True
            self._turns.add_call(self._make)

    def _make(self) -> None:
        self._is_due, submissions, self._next = False, self._next, []
        by_engine: dict[str, list[Submission]] = defaultdict(list)
        for submission in submissions:
            if submission.ahead is not None and self._is_wanted(submission):
                by_engine[submission.ahead.engine_id].append(submission)
        if by_engine and self._streaming is None:
            self._streaming = self._handle.options(stream=True)
        for engine_id, those in by_engine.items():
            call = SharedCall(self._streaming, engine_id, those)
            self._calls.add(call.task)
            call.task.add_done_callback(self._calls.discard)
            for submission in those:
                self._made(submission)


class SharedCall:
    """One call.

    Attributes:
        task: ends with it.
    """

    def __init__(self, handle: Any, engine_id: str, submissions: Sequence[Submission]) -> None:
        loop = asyncio.get_running_loop()
        self._handle = handle
        self._engine_id = engine_id
        self._replies: dict[RequestKey, asyncio.Future[Any]] = {}
        for submission in submissions:
            key = submission.entry.request_id, submission.entry.attempt
            reply = self._replies[key] = loop.create_future()
            submission.call = _Part(self, key), reply
        # Of no HTTP request: Serve would cancel the calls of one whose client has gone.
        self.task = contextvars.Context().run(loop.create_task, self._run())

    def answer(self, key: RequestKey, reply: Any) -> None:
        """Of one request; once no reply is awaited, the call is over."""
        waiting = self._replies.pop(key, None)
        if waiting is not None:
            waiting.set_result(reply)

    def give_up(self, key: RequestKey) -> None:
        """Nobody wants the reply of one request."""
        self.answer(key, EngineLost("", "the call was cancelled"))
        if not self._replies:
            self.task.cancel()

    async def _run(self) -> None:
        ended: Any = EngineLost("", "the call ended without a reply")
        count = CallOfRequests(self._handle, self._engine_id.removeprefix("engine-"), len(self._replies))
        call = None
        try:
            call = self._handle.follow.remote(Followed(self._engine_id, list(self._replies)))
            async for replies in call:
                count.end(len(replies))
                for key, reply in replies:
                    self.answer(key, said(reply))
        except asyncio.CancelledError as error:
            if call is not None:
                call.cancel()
            ended = said_by(error)
        except Exception as error:
            ended = said_by(error)
        finally:
            count.close()
            for key in list(self._replies):
                self.answer(key, ended)


class _Part:
    """Of a shared call, what is one request's."""

    def __init__(self, call: SharedCall, key: RequestKey) -> None:
        self._call = call
        self._key = key

    def cancel(self) -> None:
        """Its reply is not wanted any more. The engine is told on the way on which the request went."""
        self._call.give_up(self._key)
