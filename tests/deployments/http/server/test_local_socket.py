"""HAProxy of the same machine reaches an HTTP server by a socket beside its port; everybody else by the port."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployments.http.server.local_socket import listen_beside_ports
from deployments.start.serve_environment import HTTP_SOCKETS, free_port
from tests.deployments.http.server.listening import listening
from tests.deployments.http.server.real_haproxy import configured, haproxy_of_loop

CONFIG = """
global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    option forwardfor
frontend f
    bind 127.0.0.1:{front}
    default_backend b
backend b
    server living 127.0.0.1:{port} check
    server elsewhere 10.255.0.9:{port} check disabled
    server shorter 127.0.0.1:{other} check disabled
"""


async def application(scope, receive, send) -> None:
    """Answers with the addresses that it sees."""
    body = f"{scope['client'][0]} {scope['server']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def families(server: uvicorn.Server) -> set[int]:
    """Of the connections that are open."""
    return {one.transport.get_extra_info("socket").family for one in server.server_state.connections}


@pytest.fixture(params=["h11", "httptools"])
def http(request, monkeypatch, tmp_path) -> str:
    for kind in (H11Protocol, HttpToolsProtocol):
        monkeypatch.setattr(kind, "connection_made", vars(kind)["connection_made"])
    monkeypatch.setattr(uvicorn.Server, "serve", vars(uvicorn.Server)["serve"])
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv(HTTP_SOCKETS, str(tmp_path / "http"))
    listen_beside_ports()
    listen_beside_ports()  # as well as once
    return request.param


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_haproxy_takes_the_socket_and_the_client_keeps_its_address(http, tmp_path, make_loop):
    """Replicas run on uvloop where it is installed."""
    loop = make_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(check_that_haproxy_takes_the_socket(http, tmp_path), 60))
    finally:
        loop.close()


async def check_that_haproxy_takes_the_socket(http: str, tmp_path: Path) -> None:
    front = free_port()
    async with (
        listening(application, http=http) as served,
        httpx.AsyncClient(headers={"X-Forwarded-For": "203.0.113.9"}) as client,
    ):
        sock = tmp_path / "http" / str(served.port)
        assert sock.is_socket() and sock.parent.stat().st_mode & 0o77 == 0
        killed = tmp_path / "http" / "9"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(killed))
        text = CONFIG.format(front=front, port=served.port, other=served.port // 10)
        config = await asyncio.to_thread(configured, tmp_path, text)
        assert f"server living unix@{sock} check\n" in config
        assert f"server elsewhere 10.255.0.9:{served.port} check disabled\n" in config, "of another machine"
        assert f"server shorter 127.0.0.1:{served.port // 10} check disabled\n" in config, "of another port"
        assert sock.is_socket() and not killed.exists()

        async with haproxy_of_loop(tmp_path, text, front):
            answer = await client.get(f"http://127.0.0.1:{front}/")
            assert answer.status_code == 200
            assert answer.text == f"203.0.113.9 ('127.0.0.1', {served.port})"
            assert families(served.server) == {socket.AF_UNIX}
        direct = await client.get(f"http://127.0.0.1:{served.port}/")
        assert direct.status_code == 200
        assert socket.AF_INET in families(served.server)
    assert not sock.exists(), "the server has ended"
    again = await asyncio.to_thread(configured, tmp_path, text)
    assert f"server living 127.0.0.1:{served.port} check\n" in again


async def test_a_dead_servers_socket_is_replaced_and_a_successors_is_left(http, tmp_path):
    with socket.socket(socket.AF_UNIX) as successor:
        async with listening(application, http=http) as served:
            sock = tmp_path / "http" / str(served.port)
            sock.unlink()
            successor.bind(str(sock))
        assert sock.is_socket()
    async with listening(application, port=served.port, http=http) as second:
        transport = httpx.AsyncHTTPTransport(uds=str(sock))
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://x/")).text == f"127.0.0.1 ('127.0.0.1', {second.port})"
    assert not sock.exists()


async def test_a_living_servers_socket_is_left_to_it_and_others_have_their_port(http, tmp_path, caplog):
    (tmp_path / "http").mkdir(mode=0o700)
    port = free_port()
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "http" / str(port)))
        living.listen(1)
        inode = (tmp_path / "http" / str(port)).stat().st_ino
        for _ in range(3):  # the second fills its queue
            async with listening(application, port=port, http=http), httpx.AsyncClient() as client:
                assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
            assert (tmp_path / "http" / str(port)).stat().st_ino == inode
    assert "another server listens" in caplog.text


@pytest.mark.parametrize("name", ["a&b", "[b]", "c#d", "e f"])
async def test_a_folder_whose_name_means_something_to_the_shell_has_no_sockets(http, tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(HTTP_SOCKETS, str(folder))
    async with listening(application, http=http) as served:
        text = CONFIG.format(front=1, port=served.port, other=1)
        config = await asyncio.to_thread(configured, tmp_path, text)
        assert f"server living 127.0.0.1:{served.port} check\n" in config
        assert (folder / str(served.port)).is_socket()


async def test_where_no_socket_can_be_made_the_port_serves(http, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(HTTP_SOCKETS, str(tmp_path / "file" / "http"))
    with caplog.at_level("WARNING", logger="ray.serve"):
        async with listening(application, http=http) as served, httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{served.port}/")).status_code == 200
    assert "over TCP" in caplog.text
