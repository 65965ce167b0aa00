"""An engine whose replies and messages a test says itself, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray.serve import context as serve_context

from cluster.api_errors import ApiError
from cluster.journal import JournalEntry
from cluster.outputs import AttachRequired, TokenDelta
from cluster.request import EngineRequest, Followed, RequestKey
from cluster.sampling_params import SamplingParams
from deployments.answers.choice import Choice
from deployments.metrics.ingress_metrics import SequenceTimes
from deployments.routing.engine_client import EngineClient
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.token_streams import TokenStream
from tests.waiting import until


class Remote:
    """A remote method that is called here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function

    def options(self, **options) -> Remote:
        return self


class SharedReplies:
    """The replies to a call that several requests share, as they are set."""

    def __init__(self, replies: dict[RequestKey, asyncio.Future]) -> None:
        self._replies = replies

    def cancel(self) -> None:
        for reply in self._replies.values():
            reply.cancel()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self._replies:
            done, _ = await asyncio.wait(self._replies.values(), return_when=asyncio.FIRST_COMPLETED)
            said = [(key, reply.result()) for key, reply in self._replies.items() if reply in done]
            self._replies = {key: reply for key, reply in self._replies.items() if reply not in done}
            yield said


class Engine:
    """Replica and runner in one, on another node. A test answers its calls and says what comes on its token stream.

    Attributes:
        ahead: requests that were sent to it ahead of their calls.
        calls: requests that were submitted, each with the reply that is to be set; those of a shared call one by one.
        callers: the HTTP request that each call belongs to, as Serve sees it; none has an empty name.
        aborted: request id and attempt of each abort, in order.
        messages: what the token stream carries next.
    """

    def __init__(self, engine_id: str = "e", fingerprint: str = "f") -> None:
        self.engine_id, self.fingerprint = engine_id, fingerprint
        self.calls: list[tuple[EngineRequest, asyncio.Future]] = []
        self.callers: list[str] = []
        self.aborted: list[tuple[str, int]] = []
        self.messages: asyncio.Queue[list[TokenDelta]] = asyncio.Queue()
        self.attached = False
        self.ahead: dict[RequestKey, EngineRequest] = {}
        self.generate = Remote(self._generate)
        self.follow = Remote(self._follow)
        self.abort = Remote(lambda *key: self.aborted.append(key))
        self.token_socket = Remote(lambda: asyncio.sleep(0, ("another node", "")))
        self.attach = Remote(self._attach)
        self.renew = self.detach = Remote(lambda subscriber: None)

    def _generate(self, request: EngineRequest, fingerprint: str, last_resort: bool) -> asyncio.Future:
        reply = asyncio.get_running_loop().create_future()
        if self.attached:
            self.calls.append((request, reply))
            self.callers.append(serve_context._get_serve_request_context()._internal_request_id)
        else:
            reply.set_result(AttachRequired(self.engine_id, self, self.fingerprint))
        return reply

    def options(self, **options) -> Engine:
        return self

    def _follow(self, followed: Followed) -> SharedReplies:
        replies: dict[RequestKey, asyncio.Future] = {}
        for key in followed.keys:
            replies[key] = asyncio.get_running_loop().create_future()
            self.calls.append((self.ahead[key], replies[key]))
        self.callers.append(serve_context._get_serve_request_context()._internal_request_id)
        return SharedReplies(replies)

    async def _attach(self, subscriber: str, resume: dict[str, int], leased: bool) -> AsyncIterator[Any]:
        self.attached = True
        while True:
            yield asyncio.sleep(0, await self.messages.get())

    async def called(self, times: int, within_s: float = 5.0) -> tuple[EngineRequest, asyncio.Future]:
        """Wait for a call, and return it."""
        await until(lambda: len(self.calls) >= times, within_s)
        return self.calls[times - 1]


class Client(EngineClient):
    """A client, and what it told of its one sequence.

    Attributes:
        tokens: delivered.
        ended: the error, or None once the last token came.
    """

    def __init__(self, handle: Any, **options: Any) -> None:
        super().__init__(handle, **{"choices": EngineChoices(), "max_attempts": 3, **options})
        self.tokens: list[int] = []
        self.ended: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()

    def start(self, journal_entry: JournalEntry) -> Submission:
        return self.submit(journal_entry, self._deliver, self.ended.set_result)

    def _deliver(self, delta: TokenDelta) -> None:
        self.tokens += delta.token_ids
        if delta.finish_reason is not None:
            self.ended.set_result(None)

    @property
    def stream(self) -> TokenStream:
        return self.streams[0]


def sent(request_id: str) -> EngineRequest:
    return EngineRequest(request_id, [1], SamplingParams())


def choice(client: Client, journal_entry: JournalEntry, output: Any) -> Choice:
    return Choice(0, journal_entry, output, SequenceTimes(client.metrics, 0.0))


def stream_of(client: Client) -> TokenStream | None:
    """Of the engine that is known to have the one request."""
    submission = client._submissions.of("r")
    assert submission is not None
    return submission.stream


def answer(max_tokens: int, **fields) -> JournalEntry:
    return JournalEntry("r", [1], SamplingParams(max_tokens=max_tokens), **fields)
