"""The way from a request to an answer: completions and chat."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cluster.api_errors import ApiError
from cluster.client.resumable import RESUMABLE_HEADER
from cluster.observability.request_trace import trace_id_of
from deployments.answers.event_stream import EventStream
from deployments.answers.generation import Generation
from deployments.answers.request_line import RequestLines
from deployments.answers.whole_answer import WholeAnswer
from deployments.endpoints.model_service import ModelService
from deployments.http.body import read_body
from deployments.http.connection import ClientGoneError, Peer, while_connected
from deployments.http.errors import departed, error_response
from deployments.http.large_requests import large_requests
from deployments.openai_api.answers.answer import OpenAiResponse
from deployments.openai_api.answers.event_ids import LAST_EVENT_ID_HEADER
from deployments.openai_api.resume import max_resume_bytes, wants_event_ids
from deployments.openai_api.service import Caller, OpenAiService
from deployments.ray_private.serve import request_id
from deployments.routing.waiting.turns import Turns

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

_STATUS_PATIENCE_S = 10.0
# The Python clients leave a server from which nothing comes.
_STREAM_STATUS_PATIENCE_S = 1.5

Start = Callable[[OpenAiService, Any, Caller], Awaitable[tuple[Generation, OpenAiResponse]]]


class GeneratingEndpoints:
    """Endpoints whose answers engines make.

    Args:
        turns: in which requests begin.
    """

    def __init__(self, model: ModelService, turns: Turns, lines: RequestLines) -> None:
        self._model = model
        self._turns = turns
        self._lines = lines

    async def completions(self, request: Request) -> Response:
        """A completion, whole or as a stream of events."""
        return await self._generate(request, COMPLETIONS, OpenAiService.completion)

    async def chat_completions(self, request: Request) -> Response:
        """The next message of a chat, whole or as a stream of events."""
        return await self._generate(request, CHAT, OpenAiService.chat)

    def refused(self, path: str, error: ApiError) -> None:
        """A request had no key: its line says so."""
        if path in (COMPLETIONS, CHAT):
            self._lines.refused(request_id(), path, error)

    async def _generate(self, request: Request, endpoint: str, start: Start) -> Response:
        try:
            peer, resumable, started = await self._begin(request, start)
        except ApiError as error:
            self._lines.refused(request_id(), endpoint, error)
            raise
        return await _answer(peer, *started, resumable)

    async def _begin(self, request: Request, start: Start) -> tuple[Peer, bool, tuple[Generation, OpenAiResponse]]:
        service = await self._model.ready()
        came = time.monotonic()
        await self._turns.begin()
        waited_s = time.monotonic() - came
        max_bytes = self._model.max_body_bytes
        tenant, last_event_id = request.state.tenant, request.headers.get(LAST_EVENT_ID_HEADER)
        resumable = wants_event_ids(request.headers.get(RESUMABLE_HEADER), last_event_id)
        peer = Peer.of(request.scope, request.receive, tenant)
        trace_id = trace_id_of(request.headers.get("traceparent"))
        resumed = service.resume_point(last_event_id, tenant)
        caller = Caller(tenant, peer, resumed, resumable, trace_id, request_id(), waited_s)
        max_bytes += max_resume_bytes(caller.resumed, self._model.max_choices, service.limits.max_model_len)
        # The words that client libraries know an overflow by.
        hint = f"This model's maximum context length is {service.limits.max_model_len} tokens"
        with large_requests.holding(peer.name) as holding:
            try:
                body = await read_body(request, max_bytes, holding, hint=hint)
                return peer, resumable, await start(service, body, caller)
            except (ClientDisconnect, ClientGoneError):
                raise departed() from None


async def _answer(peer: Peer, generation: Generation, answer: OpenAiResponse, resumable: bool) -> Response:
    response: Response | None = None
    try:
        patience_s = _STREAM_STATUS_PATIENCE_S if answer.request.stream else _STATUS_PATIENCE_S
        # Awaited before the status is sent, so that a refusal by the engine gets its own; not for long, so that a client in a
        # long queue sees a sign of life.
        first = await while_connected(peer.receive, generation.read(patience_s))
        # A status is a promise: a full queue is no reason to break it.
        generation.accept()
        if answer.request.stream:
            response = EventStream(generation, answer, first, resumable, peer.name)
        else:
            response = WholeAnswer(generation, answer, peer.name)
        return response
    except ClientGoneError:
        return error_response(departed())
    finally:
        if response is None:
            generation.close()
