"""Events in the middle of an answer go past ``send``, and the client cannot tell."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.http import httptools_impl

from cluster.outputs import FINISH_LENGTH
from deployments.http.body_writer import body_writer
from deployments.http.eager import begin
from deployments.native.step_writer import one_step
from tests.deployments.http.server.listening import listening
from tests.deployments.http.server.test_http_1_0 import request
from tests.deployments.ingress_without_ray import application
from tests.deployments.played_engines import SlowEngines
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("our_cycle")

_NUM_TOKENS = 40


class Sends:
    """Bodies that passed ``send``, and the writers of the requests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.writers: list[Any] = []

    def around(self, app):
        async def noting(scope, receive, send):
            async def noted(message):
                self.bodies.append(message.get("body", b""))
                await send(message)

            self.writers.append(body_writer())
            await app(scope, receive, noted)

        return noting


@contextlib.asynccontextmanager
async def streaming(version: str = "1.1"):
    """An answer that has begun: its engine, its reader, and what passed ``send``."""
    engines, sends = SlowEngines(), Sends()
    async with listening(sends.around(application(engines))) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        options = {"prompt": "x", "stream": True, "max_tokens": _NUM_TOKENS}
        writer.write(b"".join(request(version, options, "Connection: close")))
        await until(lambda: hasattr(engines, "deliver"), 20)
        engines.deliver([65])
        try:
            await asyncio.wait_for(reader.readuntil(b"}\n\n"), 20)
            yield engines, reader, sends
        finally:
            # A server waits for its clients.
            writer.transport.abort()


def texts(body: bytes) -> str:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


async def test_events_in_the_middle_pass_no_send_and_are_chunks_in_order():
    async with streaming() as (engines, reader, sends):
        for number in range(1, _NUM_TOKENS - 1):
            engines.deliver([65 + number % 26])
            # The next token is only passed on once the stream waits for it.
            await asyncio.sleep(0.001)
        engines.deliver([65 + (_NUM_TOKENS - 1) % 26], FINISH_LENGTH)
        rest = await asyncio.wait_for(reader.read(), 20)
    # The header, the first token, the last one with the end.
    assert [len(texts(body)) for body in sends.bodies] == [0, 1, 1]
    assert texts(rest) == "".join(chr(98 + number % 26) for number in range(1, _NUM_TOKENS))
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


class Notes:
    """A transport that notes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append
        self.close = self.abort = lambda: self.written.append(b"closed")
        self.is_closing = lambda: b"closed" in self.written
        self.get_extra_info = lambda name: None
        self.get_write_buffer_size = lambda: 0
        self.get_protocol = SimpleNamespace

    async def answer(self, app: Any, method: str = "POST", **flow: Any) -> list[bytes]:
        """What is written for one request: what else the event loop does meanwhile is a turn."""
        flow = SimpleNamespace(write_paused=False, resume_reading=lambda: None, **flow)
        cycle = httptools_impl.RequestResponseCycle(
            scope={"method": method, "http_version": "1.1"}, transport=self, flow=flow,
            logger=logging.getLogger(__name__), access_logger=None, access_log=False, default_headers=[],
            message_event=asyncio.Event(), expect_100_continue=False, keep_alive=method != "HEAD", on_response=lambda: None,
        )  # fmt: skip

        async def noting(scope, receive, send):
            await app(cycle, send)

        await cycle.run_asgi(noting)
        await asyncio.sleep(0)
        return self.written


def _start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _body(body: bytes, more_body: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_head_leaves_with_what_follows_it():
    async def app(cycle, send):
        await send(_start())
        await send(_body(b"a", more_body=True))
        await send(_body(b"b"))

    assert await Notes().answer(app) == [HEAD + b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"]


async def test_a_head_that_nothing_follows_does_not_wait():
    async def app(cycle, send):
        await send(_start())
        await asyncio.sleep(0)
        cycle.transport.write(b"seen, ")
        await send(_body(b"a"))

    assert await Notes().answer(app) == [HEAD, b"seen, ", b"1\r\na\r\n0\r\n\r\n"]


async def test_what_is_written_past_send_comes_behind_the_head():
    async def app(cycle, send):
        await send(_start())
        assert cycle.write(b"a")
        await send(_body(b"b"))

    assert await Notes().answer(app) == [HEAD, b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"]


@pytest.mark.parametrize("method", ["HEAD", "POST"])
async def test_a_connection_is_closed_behind_the_head(method):
    async def app(cycle, send):
        await send(_start((b"connection", b"close"), (b"content-length", b"0")))
        await send(_body(b""))

    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    assert await Notes().answer(app, method) == [head, b"closed"]


async def test_an_answer_that_fails_after_its_head_closes_the_connection():
    async def app(cycle, send):
        await send(_start())
        raise LookupError

    assert await Notes().answer(app) == [HEAD, b"closed"]


async def test_who_reads_slowly_gets_the_rest_through_send():
    async with streaming() as (engines, reader, sends):
        (writer,) = sends.writers
        writer.flow.pause_writing()
        engines.deliver([66])
        await asyncio.sleep(0.01)
        engines.deliver([67])
        await asyncio.sleep(0.01)
        assert not writer.write(b"x")
        writer.flow.resume_writing()
        engines.deliver([68], FINISH_LENGTH)
        rest = await asyncio.wait_for(reader.read(), 20)
    assert texts(rest) == "cde"
    assert sum(len(texts(body)) for body in sends.bodies) == 4


async def test_what_a_step_wrote_goes_before_what_is_sent_meanwhile():
    async with streaming() as (engines, reader, sends):
        (writer,) = sends.writers
        with one_step():
            assert writer.write(b"first")
            assert begin(writer.send({"type": "http.response.body", "body": b"second", "more_body": True})) is None
            assert writer.write(b"third")
        engines.deliver([66], FINISH_LENGTH)
        rest = await asyncio.wait_for(reader.read(), 20)
    assert b"\r\n5\r\nfirst\r\n6\r\nsecond\r\n5\r\nthird\r\n" in b"\r\n" + rest


async def test_an_answer_without_chunks_passes_send():
    async with streaming("1.0") as (engines, reader, sends):
        engines.deliver([66])
        await asyncio.sleep(0.01)
        engines.deliver([67], FINISH_LENGTH)
        rest = await asyncio.wait_for(reader.read(), 20)
    assert texts(rest) == "cd"
    assert rest.endswith(b"data: [DONE]\n\n")
    assert sum(len(texts(body)) for body in sends.bodies) == 3


async def test_a_connection_that_ends_in_another_thread_is_not_written_to():
    seen: list[Any] = []

    async def elsewhere() -> None:
        seen.append(body_writer())

    async with streaming() as (engines, reader, sends):
        assert sends.writers[0] is not None
        await asyncio.to_thread(asyncio.run, elsewhere())
        engines.deliver([66], FINISH_LENGTH)
        await asyncio.wait_for(reader.read(), 20)
    assert seen == [None]


async def test_a_client_that_leaves_is_noticed_without_a_task_that_waits_for_it():
    async with streaming() as (engines, _reader, sends):
        (writer,) = sends.writers
        # The server's, this test's and the request's.
        names = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
        assert not any("_disconnected" in name for name in names)
        cancelled: list[Any] = []
        engines.cancel = cancelled.append
        writer.transport.abort()
        await until(lambda: bool(cancelled), 20)
        assert not writer.when_gone(lambda: cancelled.append("told")) and len(cancelled) == 1


async def test_what_is_over_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        async with streaming() as (engines, reader, sends):
            generation = weakref.ref(engines.fail.__self__)
            engines.deliver([66], FINISH_LENGTH)
            await asyncio.wait_for(reader.read(), 20)
            sends.writers.clear()
            assert generation() is not None
            del engines.deliver, engines.fail, engines.submission
            await until(lambda: generation() is None, 20)
    finally:
        gc.enable()
