"""Errors as a client of the HTTP API sees them, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

from cluster.errors import BiremeError, InvalidRequestError, OverloadedError

MAX_SHOWN = 80
_MAX_ITEMS_SHOWN = 16
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An error with its HTTP status.

    Attributes:
        status: HTTP status code.
        message: one sentence for a person.
        param: the request field at fault, or None.
        code: short machine-readable reason, or None.
        headers: response headers, e.g. Retry-After (seconds) of a 429 or 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict:
        """The response body."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "api_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A request that can never work (400)."""
    return ApiError(400, message, param=param, code=code)


def overloaded(message: str, retry_after_s: float | None = None) -> ApiError:
    """A full queue (429); the client may try again after ``retry_after_s`` seconds, 1 if unknown."""
    wait = max(1, round(retry_after_s or 1))
    return ApiError(429, message, code="overloaded", headers={"Retry-After": str(wait)})


def unavailable(message: str, retry_after_s: int = 5, code: str = "engine_unavailable") -> ApiError:
    """No engine can serve now (503)."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after_s)})


def from_engine(error: BiremeError) -> ApiError:
    """What a refusal by the engine means to the client."""
    if isinstance(error, InvalidRequestError):
        return bad_request(error.message, error.param, error.code)
    if isinstance(error, OverloadedError):
        return overloaded(error.message)
    return ApiError(500, error.message, param=error.param, code=error.code)


def shown(value: Any) -> str:
    """A value in an error message as JSON, cut to a length that no client can abuse."""
    if isinstance(value, (list, dict)):
        parts = value if isinstance(value, list) else [*value, *value.values()]
        if len(value) > _MAX_ITEMS_SHOWN or any(
            isinstance(part, (list, dict)) or len(str(part)) > MAX_SHOWN for part in parts
        ):
            return f"a{' list' if isinstance(value, list) else 'n object'} of {len(value)} items"
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        # Settings come from Python and YAML, too, which have more than JSON.
        return f"a value of the type {type(value).__name__}"
    if not text.isprintable():
        text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
