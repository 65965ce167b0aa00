"""Errors that the Python client raises."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cluster.errors import BiremeError


class ClientError(BiremeError):
    """The server could not be reached, or its answer was not understood."""

    code = "client_error"


class BrokenStreamError(ClientError):
    """The stream ended before the answer did, and could not be taken up again."""

    code = "broken_stream"


class ApiStatusError(BiremeError):
    """The server refused a request.

    Attributes:
        status: HTTP status; None for an error inside a stream.
        retry_after: seconds to wait before the next try, if the server said so.
    """

    code = "api_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, param, code)
        self.status = status
        self.retry_after = retry_after

    def __reduce__(self):
        return (type(self), (self.message, self.param, self.code, self.status, self.retry_after))


class BadRequestError(ApiStatusError):
    """The request can never work, or never arrived (400, 405, 408, 413)."""


class AuthenticationError(ApiStatusError):
    """The API key is missing or wrong (401)."""


class NotFoundError(ApiStatusError):
    """No such model or path (404)."""


class RateLimitError(ApiStatusError):
    """The server's queue is full; try again after ``retry_after`` seconds (429)."""


class ServerError(ApiStatusError):
    """The server failed or is not ready (5xx)."""


_KINDS: dict[int, type[ApiStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    404: NotFoundError,
    405: BadRequestError,
    408: BadRequestError,
    413: BadRequestError,
    429: RateLimitError,
}


def status_error(status: int, headers: Mapping[str, str], body: bytes, note: str = "") -> ApiStatusError:
    """The exception for a response that is not a success; ``note`` is added where the server's own error is not in it."""
    try:
        error = json.loads(body)["error"]
        message, param, code = error["message"], error.get("param"), error.get("code")
    except (ValueError, KeyError, TypeError):
        message, param, code = f"HTTP {status}: {body[:200].decode(errors='replace')}{note}", None, None
    kind = _KINDS.get(status, ServerError if status >= 500 else ApiStatusError)
    try:
        retry_after = float(headers["retry-after"])
    except (KeyError, ValueError):
        retry_after = None
    return kind(message, param, code, status, retry_after)


_KINDS_BY_TYPE: dict[object, type[ApiStatusError]] = {
    "invalid_request_error": BadRequestError,
    "rate_limit_error": RateLimitError,
}


def stream_error(error: Mapping[str, object]) -> ApiStatusError:
    """The exception for an error event inside a stream, whose status was sent long before."""
    param, code = error.get("param"), error.get("code")
    kind = _KINDS_BY_TYPE.get(error.get("type"), ServerError)
    return kind(str(error.get("message")), str(param) if param else None, str(code) if code else None)
