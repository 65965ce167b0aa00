"""Requests that HAProxy hands to the replica in this process, in all of Serve's counts and past its layers.

Serve's own way makes two tasks, a queue and three generators of each request, and a record for an access log that is off. What is
not as most requests are takes it still.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Collection
from typing import Any

from ray.serve._private.common import RequestMetadata, RequestProtocol
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.logging_utils import format_client_address, log_access_log_filter
from ray.serve._private.tracing_utils import is_tracing_enabled
from ray.serve._private.utils import generate_request_id
from ray.serve.context import _RequestContext, _serve_request_context
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ray_private.serve import replica_here

logger = logging.getLogger(SERVE_LOGGER_NAME)

_REQUEST_ID = b"x-request-id"
# Serve looks at them; hardly any request has one.
_OF_SERVE = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"serve_multiplexed_model_id",
        b"x-session-id",
        b"x_session_id",
        b"x_request_id",
    }
)
_CLIENT_LEFT = "499"
# In Serve's counts of how many there are, all are alike.
_DIRECT = RequestMetadata(
    request_id="", internal_request_id="", is_direct_ingress=True, _request_protocol=RequestProtocol.HTTP
)


class DirectRequests:
    """Serves requests to ``app``, or leaves them to Serve.

    Args:
        paths: of POST, without the application's prefix, that Serve need not look at.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._replica: Any = replica_here()

    def take(self, scope: Scope) -> bool:
        """Whether ``serve`` is for this request: but for its counts nothing about it is Serve's business, and there is room."""
        replica = self._replica
        if replica is None or scope["type"] != "http" or scope["method"] != "POST" or scope["root_path"]:
            return False
        prefix, path = _root_path(replica), scope["path"]
        return (
            path.startswith(prefix)
            and path[len(prefix) :] in self._paths
            and _OF_SERVE.isdisjoint([name for name, _ in scope["headers"]])
            and replica._user_callable_initialized
            and replica._http_options.request_timeout_s is None
            and not replica._user_callable_wrapper._run_user_code_in_separate_thread
            and not is_tracing_enabled()
            and not _logs_accesses()
            # Who waits for a place does so there.
            and not replica._semaphore.locked()
            and replica._can_accept_request(_DIRECT)
        )

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may come this way."""
        replica, began = self._replica, time.time()
        route, names, metrics = replica._route_prefix or "", replica._deployment_id, replica._metrics_manager
        given = next((value.decode() for name, value in scope["headers"] if name == _REQUEST_ID), "")
        own_id = generate_request_id()  # of which clients know nothing, so that no two requests have one
        answer = _Answer(given or own_id, send)
        scope["root_path"] = _root_path(replica)
        context = _RequestContext(
            route=route, request_id=answer.request_id, app_name=names.app_name, cancel_on_parent_request_cancel=True,
            _client=format_client_address(scope.get("client")), _internal_request_id=own_id,
        )  # fmt: skip
        _serve_request_context.set(context)
        # One of ``max_ongoing_requests``, and one more in Serve's counts.
        await replica._semaphore.acquire()
        try:
            metrics.inc_num_ongoing_requests(_DIRECT)
            try:
                error = await self._answer(scope, receive, answer)
            finally:
                metrics.dec_num_ongoing_requests(_DIRECT)
        finally:
            replica._semaphore.release()
        latency_ms = 1e3 * (time.time() - began)
        metrics.record_request_metrics(
            route=route, latency_ms=latency_ms, is_error=error is not None,
            exception_type=None if error is None else type(error).__name__,
        )  # fmt: skip
        if answer.status:
            metrics.record_ingress_request_metrics(
                protocol=RequestProtocol.HTTP, method="POST", route=route, app_name=names.app_name,
                deployment_name=names.name, latency_ms=latency_ms, is_error=answer.status[0] in "45",
                status_code=answer.status,
            )  # fmt: skip

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> BaseException | None:
        """Have the application answer; what of it Serve counts as an error."""
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError as cancelled:
            return cancelled
        except Exception as failed:
            logger.exception("Request failed.")
            return failed
        if answer.is_whole and answer.status != _CLIENT_LEFT:
            return None
        answer.status = _CLIENT_LEFT
        return asyncio.CancelledError()


class _Answer:
    """What is sent of one.

    Attributes:
        request_id: its client is told.
        status: empty before it is sent.
        is_whole: the last part was sent.
    """

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.status = ""
        self.is_whole = False
        self._send = send

    def send(self, message: Message) -> Awaitable[None]:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
            headers = [*message.get("headers", ()), (_REQUEST_ID, self.request_id.encode())]
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.is_whole = True
        return self._send(message)


def _root_path(replica: Any) -> str:
    prefix = replica._route_prefix or ""
    return "" if prefix == "/" else prefix


def _logs_accesses() -> bool:
    # Serve has its log of them filtered out, once the record is made.
    return any(log_access_log_filter not in handler.filters for handler in logger.handlers)
