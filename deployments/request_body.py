"""Reading a request body that a stranger sent: bounded size and time, JSON only, nothing that JSON does not have."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ray.exceptions import RayError
from starlette.requests import Request

from deployments.api_errors import ApiError, bad_request, unavailable

BODY_TIMEOUT_S = 60.0
# Parsed within a millisecond or so; longer bodies must not hold up other clients' tokens.
_INLINE_BYTES = 2**16


async def read_json(request: Request, max_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> Any:
    """The decoded JSON body.

    Raises:
        ApiError: 413 as soon as more than ``max_bytes`` have come, 408 if they take longer than ``timeout_s`` seconds, 400
            for another content type or bytes that are not JSON, 503 if the proxy could not hand the body over.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise bad_request(
            f"the content type must be application/json, got {content_type[:80] or 'none'}; "
            "with curl: -H 'Content-Type: application/json'",
            code="invalid_content_type",
        )
    try:
        body = await asyncio.wait_for(_read(request, max_bytes), timeout_s)
    except asyncio.TimeoutError:
        raise ApiError(
            408,
            f"the request body did not arrive within {timeout_s:g} s",
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None
    except RayError as error:  # Serve's own proxy passes the body on by an actor call, which may fail
        raise unavailable(f"the request did not arrive whole: {type(error).__name__}", code="request_lost") from None
    try:
        if len(body) <= _INLINE_BYTES:
            return json.loads(body, parse_constant=_refuse_constant)
        return await asyncio.to_thread(json.loads, body, parse_constant=_refuse_constant, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise ApiError(413, f"the request body exceeds {max_bytes} bytes", code="request_too_large")
    return bytes(body)


def _integer(digits: str) -> int:
    """Python, not C: between two of these calls the parser's thread gives the interpreter to others that wait for it."""
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
