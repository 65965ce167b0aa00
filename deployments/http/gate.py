"""What each request passes before a route: its path without slashes at the end, its API key, and CORS."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api_errors import ApiError
from deployments.http.errors import error_response
from deployments.http.keys import ApiKeys

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_EXPOSED_HEADERS = ("Retry-After", "Bireme-Max-Silence", "X-Request-ID")


Refused = Callable[[str, ApiError], object]


def gate(
    app: ASGIApp,
    keys: ApiKeys,
    open_paths: Collection[str],
    allowed_origins: Sequence[str] = (),
    refused: Refused = lambda path, error: None,
) -> ASGIApp:
    """``app`` behind the gate.

    Args:
        open_paths: need no key.
        allowed_origins: whose pages may read answers; their preflight requests, which carry no key, are answered here.
        refused: told the path, without the prefix, and the error of each request without a valid key.
    """
    gated: ASGIApp = _Authenticated(app, keys, frozenset(open_paths), refused)
    if allowed_origins:
        gated = CORSMiddleware(
            gated,
            allow_origins=allowed_origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    return gated


class _Authenticated:
    """Checks the API key before anything else looks at a request, and notes whom that belongs to."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: frozenset[str], refused: Refused) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # The route prefix of the application is part of the path.
            prefix = scope.get("root_path", "")
            path = scope["path"].rstrip("/")
            scope = {**scope, "path": path or "/"}
            if not (path.startswith(prefix) and path[len(prefix) :] in self._open_paths):
                try:
                    tenant = self._keys.check(Request(scope).headers.get("authorization"))
                except ApiError as error:
                    self._refused(path.removeprefix(prefix), error)
                    await error_response(error)(scope, receive, send)
                    return
                scope["state"] = {**scope.get("state", {}), "tenant": tenant}
        await self._app(scope, receive, send)
