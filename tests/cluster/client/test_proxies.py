"""The client and proxies of the environment."""

from __future__ import annotations

import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.client import Client
from cluster.client.errors import ServerError
from cluster.errors import BiremeError


class Answering(BaseHTTPRequestHandler):
    """A server to which ``/health`` is well; asked as a proxy it has nothing but a page of its own."""

    def do_GET(self) -> None:
        body = b"<html>Bad gateway</html>" if "://" in self.path else b"{}"
        self.send_response(502 if "://" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for variable in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_addresses_of_this_machine_are_never_asked_of_a_proxy(host, port, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Client(f"http://{host}:{port}") as client:
        assert client.health()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:9"),
        ("ALL_PROXY", "socks://127.0.0.1:9"),
        ("http_proxy", "http://user:s3cr/secret@127.0.0.1:9"),
        ("http_proxy", "http://127.0.0.1:port"),
        ("https_proxy", "127.0.0.1:port"),
        ("no_proxy", "::1/128"),
        ("no_proxy", "localhost,fd00::/8"),
        ("NO_PROXY", "[::1]"),
        ("no_proxy", "secret:port"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_where_it_would_be_asked(name, value, port, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.health()
    with pytest.raises(BiremeError, match=rf"^{name}: ") as refused:
        Client("http://server.invalid:8000")
    assert not {"secret", "s3cr"} & set(re.findall(r"\w+", str(refused.value)))


def test_where_a_proxy_answered_the_error_names_the_variable(port, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with (
        Client("http://server.invalid:8000") as client,
        pytest.raises(
            ServerError, match=r"HTTP 502: .*Bad gateway.*; the proxy in http_proxy .*add server.invalid to no_proxy"
        ),
    ):
        client.status()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Client("http://server.invalid:8000") as client, pytest.raises(BiremeError, match="the proxy in http_proxy"):
        client.status()
