"""The first of this project that sees an HTTP request: in Ray Serve's own proxy, and where HAProxy hands it to an ingress.

Serve writes what clients name into its logs: the header X-Request-ID before the message of every line.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.process.logs import log_value
from deployments.http.server.short_way import short_way

# Headers with which clients name something to Serve, with "-" for "_"; the last keeps a session together.
_NAMES = frozenset({b"x-request-id", b"serve-multiplexed-model-id", b"x-session-id"})
# Others that Serve decodes; where that fails it answers 500.
_DECODED = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"traceparent"})


class HttpDoor:
    """Makes one word of each header that Serve logs, and of a client's address that a header may have changed; drops other
    headers of Serve's that are not ASCII."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": [header for raw in scope["headers"] for header in _safe(*raw)]}
            if scope.get("client"):
                scope["client"] = (log_value(scope["client"][0]), scope["client"][1])
            if (way := short_way(scope)) is not None:
                await way.serve(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _safe(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    spelt = name.lower().replace(b"_", b"-")
    if spelt in _NAMES:
        # Without an id Serve makes one.
        return [(name, log_value(value).encode())] if value else []
    return [] if spelt in _DECODED and not value.isascii() else [(name, value)]
