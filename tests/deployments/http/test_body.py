"""Request bodies of clients that go on with long answers."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc

import pytest
from ray.exceptions import ActorUnavailableError
from starlette.requests import Request

from cluster.api_errors import ApiError
from deployments.http.body import parse_json, read_body
from deployments.openai_api.answers.event_ids import ResumePoint
from deployments.openai_api.resume import max_resume_bytes

TOKENS = [1_000_000_000 + i for i in range(2**20)]


def posted(body: bytes) -> Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)


def event(num_tokens: int) -> ResumePoint:
    return ResumePoint("cmpl-" + "0" * 32, 1, num_tokens, 0, 0, "")


def test_a_request_from_the_beginning_has_no_more_room():
    assert max_resume_bytes(None, 4, 8192) == 0


@pytest.mark.parametrize(("num_tokens", "num_choices"), [(0, 1), (20_000, 4), (20_000, 128)])
def test_an_event_brings_room_for_the_tokens_that_came_before(num_tokens, num_choices):
    room = max_resume_bytes(event(num_tokens), num_choices, 8192)
    ended = {"token_ids": [], "finish_reason": "length"}
    choices = [{"token_ids": [2**31 - 1] * num_tokens, "finish_reason": None}, *[ended] * (num_choices - 1)]
    assert len(json.dumps({"fingerprint": "bireme-" + "0" * 16, "choices": choices})) <= room
    assert room <= 12 * num_tokens + 200 * num_choices


def test_room_is_bounded_whatever_an_id_tells():
    told = event(10**12 - 1)
    assert max_resume_bytes(told, 1, 1000) < 13_000
    assert max_resume_bytes(told, 1024, 2**20) == 2**25


async def test_a_body_that_the_proxy_could_not_hand_over_is_asked_for_again():
    async def receive() -> dict:
        raise ActorUnavailableError("the proxy's call failed", None)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(ApiError, match="ActorUnavailableError") as caught:
        await read_body(Request(scope, receive), 1000)
    assert (caught.value.status, caught.value.code) == (503, "request_lost")


@pytest.mark.parametrize("length", [10, 100_000])
async def test_what_json_does_not_have_is_refused_in_bodies_of_any_length(length):
    with pytest.raises(ApiError, match="NaN is not JSON"):
        parse_json(await read_body(posted(b"[" + b"1," * length + b"NaN]"), 2**25))


async def test_where_a_body_is_no_json_is_said_in_words_of_json():
    with pytest.raises(ApiError) as caught:
        parse_json(b'{"a": [1 2]}')
    assert caught.value.message == 'the body is not valid JSON: Expecting "," delimiter at line 1, column 10'


def compressed(body: bytes, coding: str = "gzip", piece: int = 1000) -> Request:
    pieces = [body[i : i + piece] for i in range(0, len(body), piece)]

    async def receive() -> dict:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    headers = [(b"content-type", b"application/json"), (b"content-encoding", coding.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def test_gzip_is_read_whatever_its_pieces():
    text = json.dumps({"prompt": [os.urandom(9).hex() for _ in range(9000)]}).encode()
    for piece in (1, 1000, 10**9):
        text = text[:3000] if piece == 1 else text
        assert await read_body(compressed(gzip.compress(text), piece=piece), len(text)) == text
    assert await read_body(compressed(text, "identity"), len(text)) == text
    assert await read_body(compressed(gzip.compress(text), "X-GZIP"), len(text)) == text


@pytest.mark.parametrize("piece", [1, 7, 10**9])
async def test_gzip_may_have_several_members(piece):
    text = json.dumps({"prompt": "a " * 500}).encode()
    members = [text[:10], b"", text[10:11], text[11:]]
    body = b"".join(map(gzip.compress, members))
    assert await read_body(compressed(body, piece=piece), len(text)) == text
    with pytest.raises(ApiError, match="exceeds"):
        await read_body(compressed(body * 2, piece=piece), len(text))


async def test_a_small_body_that_holds_a_gigabyte_is_refused_before_it_is_held():
    bomb = gzip.compress(bytes(2**26))
    assert len(bomb) < 2**17
    tracemalloc.start()
    with pytest.raises(ApiError) as caught:
        await read_body(compressed(bomb, piece=len(bomb)), 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    assert peak < 4 * 2**20


@pytest.mark.parametrize(
    ("body", "coding", "status", "code"),
    [
        (b"{}", "gzip", 400, "invalid_gzip"),
        (gzip.compress(b"{}")[:-1], "gzip", 400, "invalid_gzip"),
        (gzip.compress(b"{}") + b"{}", "gzip", 400, "invalid_gzip"),
        (gzip.compress(b"{}") + gzip.compress(b"{}")[:-1], "gzip", 400, "invalid_gzip"),
        (gzip.compress(b"{}") + gzip.compress(b"") * 100, "gzip", 400, "invalid_gzip"),
        (b"{}", "br", 415, "unsupported_content_encoding"),
        (b"{}", "gzip, gzip", 415, "unsupported_content_encoding"),
    ],
)
async def test_other_codings_and_broken_gzip_are_refused(body, coding, status, code):
    with pytest.raises(ApiError) as caught:
        await read_body(compressed(body, coding), 1000)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert ("Accept-Encoding" in caught.value.headers) == (status == 415)
