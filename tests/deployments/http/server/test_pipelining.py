"""A client that has sent its next request, too, and leaves: nothing is computed for it any longer."""

from __future__ import annotations

import asyncio

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.outputs import FINISH_LENGTH
from deployments.http.server.pipelining import tell_who_is_answered
from tests.deployments.http.server.listening import listening
from tests.deployments.http.server.test_http_1_0 import request
from tests.deployments.ingress_without_ray import application
from tests.deployments.played_engines import SlowEngines
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("our_cycle", "telling")

NEXT = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture
def telling(monkeypatch) -> None:
    monkeypatch.setattr(HttpToolsProtocol, "connection_lost", vars(HttpToolsProtocol)["connection_lost"])
    tell_who_is_answered()
    tell_who_is_answered()  # as well as once


class Cancelled(SlowEngines):
    """Knows who was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list = []

    def cancel(self, submission):
        self.cancelled.append(submission)


@pytest.mark.parametrize("behind", [b"", NEXT, NEXT + NEXT, HALF])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_under_way_ends_whatever_waits_behind_it(stream, behind):
    engines = Cancelled()
    async with listening(application(engines), http="httptools") as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"".join(request("1.1", {"prompt": "x", "stream": stream, "max_tokens": 40})) + behind)
        await until(lambda: hasattr(engines, "deliver"), 20)
        if stream:
            engines.deliver([65])
            await asyncio.wait_for(reader.readuntil(b"}\n\n"), 20)
        writer.transport.abort()
        await until(lambda: engines.cancelled == [engines.submission], 20)


async def test_who_waits_is_answered_next():
    engines = Cancelled()
    async with listening(application(engines), http="httptools") as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"".join(request("1.1", {"prompt": "x", "max_tokens": 1})) + NEXT)
        await until(lambda: hasattr(engines, "deliver"), 20)
        engines.deliver([65], FINISH_LENGTH)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 2:
            answers += await asyncio.wait_for(reader.read(4096), 20)
        assert answers.index(b"text_completion") < answers.index(b'{"status":"ok"}')
        writer.transport.abort()
