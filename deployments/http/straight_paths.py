"""Paths whose requests go straight to their handlers, past the layers that look for routes and for errors of any kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.api_errors import ApiError
from deployments.http.errors import error_response, internal_error

Handler = Callable[[Request], Awaitable[Response]]


class StraightPaths:
    """An application around one that has all routes.

    Args:
        app: has all routes, these too, for other methods.
        handlers: of POST, by path without the application's prefix.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[str, Handler]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self._handlers.get(scope["path"].removeprefix(scope.get("root_path", "")))
        if handler is None:
            await self._app(scope, receive, send)
            return
        has_begun = False

        def noting(message: Message) -> Awaitable[None]:
            nonlocal has_begun
            has_begun = True
            return send(message)

        try:
            try:
                response = await handler(Request(scope, receive, noting))
            except ApiError as error:
                response = error_response(error)
            await response(scope, receive, noting)
        except Exception:
            if not has_begun:
                await internal_error()(scope, receive, send)
            raise  # to be logged
