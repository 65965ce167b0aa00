"""Clients and proxies between them and the ingress: HTTP/1.0, which knows no chunks, and clients that leave behind HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.answers import whole_answer
from deployments.start.serve_environment import free_port
from tests.deployments.http.server.listening import listening
from tests.deployments.http.server.real_haproxy import haproxy_of_loop
from tests.deployments.ingress_without_ray import application
from tests.deployments.played_engines import Engines, SlowEngines
from tests.sse_readers import sglang_bench
from tests.waiting import until


class CancellingEngines(SlowEngines):
    """Engines that note what is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list = []

    def cancel(self, submission):
        self.cancelled.append(submission)


# The lines of Serve's own configuration that matter here.
_CONFIG = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option splice-request
    option splice-response
    option idle-close-on-response
frontend http_frontend
    bind 127.0.0.1:{front}
    default_backend ingress
backend ingress
    server one 127.0.0.1:{back}
"""


@contextlib.asynccontextmanager
async def haproxy(back: int, folder: Path) -> AsyncIterator[int]:
    """Port of a HAProxy before ``back``."""
    front = free_port()
    async with haproxy_of_loop(folder, _CONFIG.format(front=front, back=back), front):
        yield front


@contextlib.asynccontextmanager
async def way_to(engines: Engines, behind_haproxy: bool, folder: Path) -> AsyncIterator[int]:
    async with contextlib.AsyncExitStack() as stack:
        back = (await stack.enter_async_context(listening(application(engines)))).port
        yield await stack.enter_async_context(haproxy(back, folder)) if behind_haproxy else back


def request(version: str, body: dict, *headers: str) -> tuple[bytes, bytes]:
    content = json.dumps(body).encode()
    lines = [
        f"POST /v1/completions HTTP/{version}",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode(), content


async def answer_of(port: int, *pieces: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer, once the server has closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(pieces))
    head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
    writer.close()
    return head.lower(), body


@pytest.mark.parametrize("behind_haproxy", [False, True])
@pytest.mark.parametrize("header", [(), ("Connection: keep-alive",)])
async def test_an_answer_to_http_1_0_is_whole_without_chunks_and_ends_with_the_connection(
    our_cycle, tmp_path, behind_haproxy, header
):
    engines = Engines([65, 66, 67])
    async with way_to(engines, behind_haproxy, tmp_path) as port:
        for body in ({"prompt": "x"}, {"prompt": "x", "n": 0}):
            head, content = await answer_of(port, *request("1.0", {**body, "max_tokens": 3}, "Connection: close"))
            assert b"transfer-encoding" not in head
            assert ("choices" in json.loads(content)) == (body == {"prompt": "x"})
        head, content = await answer_of(
            port, *request("1.0", {"prompt": "x", "max_tokens": 3, "stream": True}, *header)
        )
    assert b"transfer-encoding" not in head
    assert b"\r\nconnection: close" in head
    assert content.startswith(b"data: {")
    assert content.endswith(b"}\n\ndata: [DONE]\n\n")
    assert sglang_bench([content])


@pytest.mark.parametrize("behind_haproxy", [False, True])
async def test_a_slow_answer_to_http_1_0_is_streamed_and_a_whole_one_has_no_spaces(
    our_cycle, tmp_path, monkeypatch, behind_haproxy
):
    """Spaces would be an answer already, and an error behind them look complete."""
    monkeypatch.setattr(whole_answer, "_HEARTBEAT_S", 0.05)
    async with way_to(engines := SlowEngines(), behind_haproxy, tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(request("1.0", {"prompt": "x", "stream": True})))
        await until(lambda: hasattr(engines, "deliver"), 20)
        engines.deliver([65])
        await asyncio.wait_for(reader.readuntil(b"}\n\n"), 20)
        engines.deliver([66], "length")
        assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"}\n\ndata: [DONE]\n\n")
        writer.close()

        del engines.deliver
        asked = asyncio.create_task(answer_of(port, *request("1.0", {"prompt": "x"}, "Connection: close")))
        await until(lambda: hasattr(engines, "deliver"), 20)
        engines.deliver([65])
        await asyncio.sleep(0.3)
        engines.fail(whole_answer.ApiError(503, "gone", code="engine_dead"))
        head, body = await asked
    assert b" 503 " in head.splitlines()[0]
    assert json.loads(body)["error"]["code"] == "engine_dead"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_haproxy_tells_the_address_of_a_client_which_it_cannot_choose(tmp_path, version):
    """Clients take turns by it. The header of one on this machine would be believed: it is dropped."""
    seen: list[dict] = []

    app = application(Engines([65]))

    async def noting(scope, receive, send) -> None:
        seen.append(scope)
        await app(scope, receive, send)

    async with listening(noting) as back, haproxy(back.port, tmp_path) as port:
        forged = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2", "Connection: close")
        head, _ = await answer_of(port, *request(version, {"prompt": "x"}, *forged))
    assert b" 200 " in head.splitlines()[0]
    (scope,) = seen
    assert scope["client"][0] == "127.0.0.1"
    assert [value for name, value in scope["headers"] if name == b"x-forwarded-for"] == [b"127.0.0.1"]


@pytest.mark.parametrize("size", [0, 100_000])
async def test_haproxy_tells_of_a_client_that_leaves_though_its_request_came_in_pieces(tmp_path, size):
    """Before its answer has begun, so that nothing could be written to it."""
    engines = CancellingEngines()
    async with listening(application(engines)) as back, haproxy(back.port, tmp_path) as port:
        head, content = request("1.1", {"prompt": "x", "user": "x", "metadata": None})
        length = b"Content-Length: %d"
        head = head.replace(length % len(content), length % (len(content) + size))
        pieces = [head, content + b" " * size]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        await until(lambda: hasattr(engines, "deliver"), 20)
        assert not engines.cancelled
        writer.close()
        await until(lambda: engines.cancelled, 5)


async def test_a_whole_answer_that_takes_a_second_has_its_length_and_no_spaces():
    async with listening(application(engines := SlowEngines())) as served:
        asked = asyncio.create_task(answer_of(served.port, *request("1.1", {"prompt": "x"}, "Connection: close")))
        await until(lambda: hasattr(engines, "deliver"), 20)
        engines.deliver([65])
        await asyncio.sleep(1.0)
        engines.deliver([66], "length")
        head, body = await asked
    assert b"content-length: %d" % len(body) in head
    assert body.startswith(b"{")
