"""All endpoints as one ASGI application: its paths, their descriptions, and the gate in front of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cluster import __version__
from deployments.endpoints.generating import CHAT, COMPLETIONS, GeneratingEndpoints
from deployments.endpoints.model_endpoints import ModelEndpoints
from deployments.endpoints.operator_endpoints import OperatorEndpoints
from deployments.http.errors import ERROR_HANDLERS
from deployments.http.gate import gate
from deployments.http.keys import ApiKeys
from deployments.http.straight_paths import Handler, StraightPaths
from deployments.openai_api.openapi import PAGE_HEADERS, Endpoint, docs_page, openapi
from deployments.openai_api.requests.protocol import ChatCompletionRequest, CompletionRequest
from deployments.openai_api.requests.validation import UnknownFields
from deployments.openai_api.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizePromptRequest,
    TokenizeResponse,
)

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


class IngressApplication:
    """The table of endpoints, and what is made of it.

    Args:
        keys: which of them ask for one, where there are any.
        unknown_fields: what the description says of fields that it does not name.
    """

    def __init__(
        self,
        generating: GeneratingEndpoints,
        model: ModelEndpoints,
        operator: OperatorEndpoints,
        keys: ApiKeys,
        unknown_fields: UnknownFields,
    ) -> None:
        self._generating = generating
        self._keys = keys
        self._unknown_fields = unknown_fields
        self._document: dict[str, Any] | None = None
        self._endpoints = [*_table(generating, model, operator), *self._pages()]

    @property
    def straight(self) -> dict[str, Handler]:
        """Handlers of requests that take the shortest way, by path."""
        return {COMPLETIONS: self._generating.completions, CHAT: self._generating.chat_completions}

    def build(self, allowed_origins: Sequence[str] = (), lifespan: Lifespan | None = None) -> ASGIApp:
        """The application behind its gate."""
        app = Starlette(
            routes=[Route(at.path, at.handler, methods=list(at.methods)) for at in self._endpoints],
            exception_handlers=ERROR_HANDLERS,
            lifespan=lifespan,
        )
        open_paths = [endpoint.path for endpoint in self._endpoints if not endpoint.needs_key]
        straight = StraightPaths(app, self.straight)
        return gate(straight, self._keys, open_paths, allowed_origins, self._generating.refused)

    def _pages(self) -> list[Endpoint]:
        return [
            Endpoint("/openapi.json", self.openapi),
            Endpoint("/docs", self.docs, content=["text/html"]),
        ]

    async def openapi(self, request: Request) -> Response:
        """This API for programs, in OpenAPI."""
        return JSONResponse(self._described(request))

    async def docs(self, request: Request) -> Response:
        """This API for people, as a page that loads nothing."""
        return HTMLResponse(docs_page(self._described(request)), headers=PAGE_HEADERS)

    def _described(self, request: Request) -> dict[str, Any]:
        if self._document is None:
            prefix = request.scope.get("root_path", "")
            self._document = openapi(self._endpoints, __version__, prefix, self._keys.required, self._unknown_fields)
        return self._document


def _table(generating: GeneratingEndpoints, model: ModelEndpoints, operator: OperatorEndpoints) -> list[Endpoint]:
    engine = {"engine": "its id; may be left out where there is one", "steps": "so many", "timeout_s": "at most"}
    only = {"only": "bireme, vllm or ray, or several of them with commas"}
    generated = "application/json", "text/event-stream"
    texts: list[type[BaseModel]] = [TokenizePromptRequest, TokenizeChatRequest]
    return [
        Endpoint(COMPLETIONS, generating.completions, ["POST"], [CompletionRequest], content=generated),
        Endpoint(CHAT, generating.chat_completions, ["POST"], [ChatCompletionRequest], content=generated),
        Endpoint("/v1/models", model.models),
        Endpoint("/v1/models/{model_id:path}", model.model),
        Endpoint("/tokenize", model.tokenize, ["POST"], texts, TokenizeResponse),
        Endpoint("/detokenize", model.detokenize, ["POST"], [DetokenizeRequest], DetokenizeResponse),
        Endpoint("/tokenizer_info", model.tokenizer_info),
        Endpoint("/health", operator.health, needs_key=False),
        Endpoint("/ping", operator.ping, ["GET", "POST"], needs_key=False),
        Endpoint("/version", operator.version),
        Endpoint("/load", operator.load),
        Endpoint("/metrics", operator.metrics, content=["text/plain"], query=only),
        Endpoint("/v1/status", operator.status),
        Endpoint("/v1/timeline", operator.timeline, query=engine),
        Endpoint("/v1/traces/{id:path}", operator.trace),
    ]
