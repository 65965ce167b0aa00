"""Errors of any kind as responses in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.api_errors import ApiError


def error_response(error: ApiError) -> Response:
    """The response that tells ``error``."""
    return JSONResponse(error.body(), error.status, error.headers)


def internal_error() -> Response:
    """For what nobody thought of."""
    return error_response(ApiError(500, "internal error; the server's log has the details", code="internal_error"))


def departed() -> ApiError:
    """For nobody, mostly. Where a proxy lost the way to a client that is still there, it asks again: nothing was begun."""
    return ApiError(499, "the client has left before its answer began", code="request_lost")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, which says in the latter's header what is allowed: that is the answer to OPTIONS."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted({*headers.get("Allow", "").split(", "), "OPTIONS"} - {""}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    path = request.url.path
    what = {
        404: f"there is no {path}; {request.scope.get('root_path', '')}/docs shows what there is",
        405: f"{request.method} is not allowed on {path}; allowed: {headers.get('Allow')}",
    }
    message = what.get(error.status_code, error.detail)
    return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, headers)


async def _crash(request: Request, error: Exception) -> Response:
    return internal_error()


ERROR_HANDLERS: Mapping[Any, Callable[[Request, Exception], Any]] = {
    ApiError: _api_error,
    HTTPException: _http_error,
    Exception: _crash,
}
