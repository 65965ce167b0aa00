"""The model by its names, and what its tokenizer makes of texts."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from deployments.endpoints.model_service import ModelService
from deployments.http.body import read_body
from deployments.http.connection import ClientGoneError, Peer
from deployments.http.errors import departed, error_response
from deployments.http.json_response import JsonResponseInPieces
from deployments.http.large_requests import large_requests
from deployments.openai_api.answers.answer import model_object
from deployments.openai_api.service import OpenAiService
from deployments.openai_api.tokenize import TokenizeEndpoints


class ModelEndpoints:
    """Endpoints that need no engine once the model is known."""

    def __init__(self, model: ModelService) -> None:
        self._model = model
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        """The one model of this application, under each of its names."""
        service = await self._model.ready()
        models = [self._model_object(service, name) for name in service.model_names]
        return JSONResponse({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        """The model by name."""
        service = await self._model.ready()
        name = request.path_params["model_id"]
        service.check_model(name)
        return JSONResponse(self._model_object(service, name))

    def _model_object(self, service: OpenAiService, name: str) -> dict:
        return model_object(name, self._created, service.limits.max_model_len, service.defaults.shown())

    async def tokenizer_info(self, request: Request) -> Response:
        """The tokenizer's configuration: special tokens, chat template, added tokens."""
        return JSONResponse(TokenizeEndpoints(await self._model.ready()).info())

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a prompt or of a chat's messages."""
        return await self._transcode(request, TokenizeEndpoints.tokenize)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        return await self._transcode(request, TokenizeEndpoints.detokenize)

    async def _transcode(
        self, request: Request, work: Callable[[TokenizeEndpoints, bytearray, Peer], Awaitable[list[bytes]]]
    ) -> Response:
        endpoints = TokenizeEndpoints(await self._model.ready())
        peer = Peer.of(request.scope, request.receive, request.state.tenant)
        with large_requests.holding(peer.name) as holding:
            try:
                body = await read_body(request, self._model.max_body_bytes, holding)
                pieces = await work(endpoints, body, peer)
            except (ClientDisconnect, ClientGoneError):
                return error_response(departed())
        return JsonResponseInPieces(pieces)
