"""Connections that send nothing, or never finish: what they hold is given back in time, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.errors import ConfigError
from deployments.http import body
from deployments.http.server.header_timeout import check_connection_limits, limit_header_time
from deployments.start import serve_environment
from deployments.start.serve_environment import free_port
from tests.deployments.conftest import wait_for
from tests.deployments.http.server.listening import listening
from tests.deployments.http.server.real_haproxy import haproxy
from tests.deployments.ingress_without_ray import application_of, service_of
from tests.deployments.played_engines import Engines

LIMIT_S = 1.0
HALF = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITED = {"BIREME_HEADER_TIMEOUT_S": f"{LIMIT_S:g}"}


async def application(scope, receive, send) -> None:
    """Answers /slow in pieces, over twice the limit."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    for _ in range(5):
        if scope["path"] == "/slow":
            await asyncio.sleep(0.4 * LIMIT_S)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await send({"type": "http.response.body", "body": b"x", "more_body": False})


@pytest.fixture(params=["h11", "httptools"])
def protocol(request, monkeypatch) -> str:
    monkeypatch.setenv("BIREME_HEADER_TIMEOUT_S", f"{LIMIT_S:g}")
    for kind in (H11Protocol, HttpToolsProtocol):
        monkeypatch.setattr(kind, "connection_made", vars(kind)["connection_made"])
    limit_header_time()
    limit_header_time()  # as well as once
    return request.param


async def seconds_open(port: int, first: bytes, then: bytes = b"") -> float:
    """How long a connection stays open after ``first`` was sent and, in the middle of the limit's time, ``then``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.monotonic()
    writer.write(first)
    if then:
        await reader.readuntil(b"xxxxxx")
        await asyncio.sleep(0.5 * LIMIT_S)
        begun = time.monotonic()
        writer.write(then)
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10 * LIMIT_S)
    writer.close()
    return time.monotonic() - begun


async def test_a_header_that_never_ends_ends_its_connection(protocol):
    async with listening(application, http=protocol, timeout_keep_alive=60) as served:
        sent = (b"",), (HALF,), (WHOLE, HALF)
        asked = [seconds_open(served.port, *pieces) for pieces in sent]
        for seconds in await asyncio.gather(*asked):
            assert 0.3 * LIMIT_S < seconds < 5 * LIMIT_S


async def test_an_answer_and_an_idle_connection_may_take_longer(protocol):
    async with listening(application, http=protocol, timeout_keep_alive=60) as served:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=60)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", limits=limits, timeout=30) as client:
            assert (await client.get("/slow")).text == "xxxxxx"
            stream = client._transport._pool.connections[0]
            await asyncio.sleep(1.8 * LIMIT_S)
            assert (await client.get("/")).text == "xxxxxx"
            assert client._transport._pool.connections == [stream], "the idle connection was closed"


async def test_a_body_that_never_ends_is_answered_and_ends_its_connection(monkeypatch):
    """The API itself behind a socket, with one second in place of its minute."""
    assert 10 <= body.BODY_TIMEOUT_S <= 120
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", LIMIT_S)
    async with listening(application_of(service_of(Engines([65])))) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        writer.write(head + b'{"pro')
        try:
            answer = await asyncio.wait_for(reader.read(), 10 * LIMIT_S)
        finally:
            writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer


@pytest.mark.parametrize("name", ["BIREME_HEADER_TIMEOUT_S", "BIREME_MAX_CONNECTIONS_PER_ADDRESS"])
@pytest.mark.parametrize("value", ["ten", "-1", "1.5", "9" * 30])
def test_a_limit_that_is_no_number_is_refused_by_name(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} must be an integer from"):
        check_connection_limits()


CONFIG = """global
    maxconn {maxconn}
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend http_frontend
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string well
"""


@pytest.fixture
def crowded(tmp_path) -> Iterator[int]:
    """The port of a HAProxy for at most forty connections."""
    port = free_port()
    with haproxy(tmp_path, CONFIG.format(port=port, maxconn=40), port, **LIMITED):
        yield port


def test_a_connection_that_sends_nothing_is_closed_without_an_answer_to_nothing(crowded):
    with socket.create_connection(("127.0.0.1", crowded), timeout=20) as connection:
        assert connection.recv(4096) == b""


def is_well(port: int, source: str = "127.0.0.1") -> bool:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, timeout=20, trust_env=False) as client:
        try:
            return client.get(f"http://127.0.0.1:{port}/").text == "well"
        except httpx.TransportError:
            return False


def half_open(port: int, count: int) -> list[socket.socket]:
    """Connections that have sent a part of a header; those that were turned away at once are among them."""
    opened = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            opened.append(connection)
            connection.sendall(HALF)
    return opened


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize("descriptors", [600, 1024, 4096])
def test_haproxy_starts_with_the_descriptors_that_there_are(descriptors, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_environment.resource, "getrlimit", lambda kind: (descriptors, descriptors))
    port = free_port()
    text = CONFIG.format(port=port, maxconn=serve_environment.max_connections())
    text = text.replace("    mode http\n", "    mode http\n    option splice-response\n")
    with haproxy(tmp_path, text, port, descriptors):
        assert is_well(port)


@pytest.fixture
def slow_server() -> Iterator[int]:
    """Answers after almost twice the limit, in two pieces with as much time between them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                time.sleep(1.8 * LIMIT_S)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwe")
                time.sleep(1.8 * LIMIT_S)
                connection.sendall(b"ll")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]


def test_the_limits_of_a_client_do_not_count_a_servers_silence(slow_server, tmp_path):
    """However long a step of an engine takes: neither the limit for headers nor that for idle clients ends an answer."""
    port = free_port()
    backend = f"    default_backend slow\nbackend slow\n    server one 127.0.0.1:{slow_server}\n"
    text = CONFIG.format(port=port, maxconn=40).replace("timeout client 30s", f"timeout client {LIMIT_S:g}s")
    text = text[: text.index("    http-request return")] + backend
    with (
        haproxy(tmp_path, text, port, **LIMITED),
        httpx.Client(timeout=30, trust_env=False) as client,
    ):
        assert client.post(f"http://127.0.0.1:{port}/", content=b"{}").text == "well"


def test_more_half_open_connections_than_haproxy_takes_shut_nobody_out(crowded):
    """One address may have three quarters of them; another one is served at once, and the same one after the limit."""
    begun = time.monotonic()
    opened = half_open(crowded, 60)
    assert is_well(crowded, source="127.0.0.2")
    wait_for(lambda: is_well(crowded), 5 * LIMIT_S, "the address of the half-open connections is shut out")
    assert all(map(is_closed, opened))
    assert time.monotonic() - begun < 10 * LIMIT_S
