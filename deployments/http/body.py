"""Reading a request body that a stranger sent: bounded size and time, JSON only, nothing that JSON does not have."""

from __future__ import annotations

import asyncio
from json import JSONDecodeError
from typing import Any

from ray.exceptions import RayError
from starlette.requests import Request

from cluster.api_errors import ApiError, bad_request, unavailable
from deployments.http.content_coding import Gunzip, gunzip_of
from deployments.http.eager import within
from deployments.http.json_pieces import read_json_text
from deployments.http.large_requests import SMALL_BYTES, Holding

BODY_TIMEOUT_S = 60.0

_MIN_DEFAULT_BYTES = 2**20
_MAX_DEFAULT_BYTES = 2**22
# Token ids with their separators, or escaped text, of one prompt that fills the context; and plain text of many.
_BYTES_A_TOKEN = 32
_BYTES_A_TOKEN_OF_MANY = 16


def default_body_bytes(max_model_len: int, max_choices: int) -> int:
    """The largest request body unless a setting says otherwise: room for one full context however it is written, and for as
    many as a request may have up to 4 MiB; at least 1 MiB."""
    of_many = min(_BYTES_A_TOKEN_OF_MANY * max_model_len * max_choices, _MAX_DEFAULT_BYTES)
    return max(_MIN_DEFAULT_BYTES, _BYTES_A_TOKEN * max_model_len, of_many)


async def read_body(
    request: Request, max_bytes: int, holding: Holding | None = None, timeout_s: float | None = None, hint: str = ""
) -> bytearray:
    """The body; ``parse_json`` reads it. ``holding`` counts it: from the beginning if its length is told. One that came as gzip
    is counted and bounded by what it holds. ``hint`` is a sentence for who sends too much.

    Raises:
        ApiError: 413 as soon as it is known to exceed ``max_bytes``, 408 if it takes longer than ``timeout_s`` seconds
            (BODY_TIMEOUT_S unless told), 400 for another content type, 415 for a content encoding but gzip, 429 if there is no
            room for it now, 503 if the proxy could not hand it over.
    """
    timeout_s = BODY_TIMEOUT_S if timeout_s is None else timeout_s
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise bad_request(
            f"the content type must be application/json, got {content_type[:80] or 'none'}; "
            'with curl: -H "Content-Type: application/json"',
            code="invalid_content_type",
        )
    gunzip = gunzip_of(request.headers.get("content-encoding"))
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit():
        if len(length) > 18 or int(length) > max_bytes:
            raise _too_large(max_bytes, hint)
        _count(int(length), max_bytes, holding)
    try:
        return await within(_read(request, max_bytes, holding, gunzip, hint), timeout_s)
    except asyncio.TimeoutError:
        raise ApiError(
            408,
            f"the request body did not arrive within {timeout_s:g} s",
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None
    except RayError as error:  # Serve's own proxy passes the body on by an actor call, which may fail
        raise unavailable(f"the request did not arrive whole: {type(error).__name__}", code="request_lost") from None


def parse_json(body: bytes | bytearray) -> Any:
    """The decoded JSON body. Of a long one this belongs into a thread, where it holds up nobody.

    Raises:
        ApiError: 400 for bytes that are not JSON, or more of it than is read here.
    """
    try:
        return read_json_text(body)
    except JSONDecodeError as error:
        what = error.msg.replace("'", '"').removesuffix(" at")
        where = f"line {error.lineno}, column {error.colno}"
        raise bad_request(f"the body is not valid JSON: {what} at {where}", code="invalid_json") from None
    except ValueError as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None


async def _read(
    request: Request, max_bytes: int, holding: Holding | None, gunzip: Gunzip | None, hint: str
) -> bytearray:
    body = bytearray()

    def add(piece: bytes) -> None:
        nonlocal body
        if len(body) + len(piece) > max_bytes:
            raise _too_large(max_bytes, hint)
        body += piece
        _count(len(body), max_bytes, holding)

    async for received in request.stream():
        if gunzip is None:
            add(received)
            continue
        for piece in gunzip.pieces(received):
            add(piece)
            # A thousand times as much may be in what was received: others go on in between.
            await asyncio.sleep(0)
    if gunzip is not None:
        gunzip.end()
    return body


def _count(num_bytes: int, max_bytes: int, holding: Holding | None) -> None:
    if holding is not None and num_bytes > SMALL_BYTES:
        holding.grow_to(num_bytes, max_bytes)


def _too_large(max_bytes: int, hint: str) -> ApiError:
    # Not with Connection: close: a client that is still writing would see a reset instead of this.
    message = f"the request body exceeds {max_bytes} bytes"
    return ApiError(413, f"{message}. {hint}" if hint else message, code="request_too_large")
