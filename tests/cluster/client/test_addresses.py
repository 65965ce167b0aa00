"""A client that knows several addresses of one service; the servers behind them are real, if small."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from cluster.client import AsyncClient, Client, resumable
from cluster.client import base as client_base
from cluster.client.addresses import Addresses
from cluster.client.errors import BadRequestError, ClientError
from cluster.client.resumable import FALLBACK_PORT_HEADER, MAX_SILENCE_HEADER, ResumableStream
from tests.waiting import wait_for

TOKENS = [5, 6, 7, 8]


class Server(ThreadingHTTPServer):
    """Answers every completion with TOKENS, taken up where the client has them; notes the paths of requests, and how often it was
    asked whether it is well.

    Args:
        sound: the status of its proxy; None: it is hung, and accepts connections only.
        cut_after: events after which it breaks every stream off.
        hang_after: events after which it falls silent.
        max_silence: what it promises of its silence.
        fallback_port: where else it says that it answers.
    """

    daemon_threads = True

    def __init__(
        self,
        cut_after: int | None = None,
        hang_after: int | None = None,
        max_silence: str | None = None,
        sound: int | None = 200,
        fallback_port: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sound = sound
        self.looks = 0
        self.cut_after = cut_after
        self.hang_after = hang_after
        self.max_silence = max_silence
        self.fallback_port = fallback_port
        self.ends = threading.Event()
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/-/healthz":
            self.server.looks += 1
            if self.server.sound is None:
                self.server.ends.wait(30)
            else:
                self._send(self.server.sound, {})
            return
        self.server.paths.append(self.path)
        self._send(200, {"data": [{"id": "tiny", "max_model_len": 9}], "running": 0})

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        if self.server.sound is None:
            self.server.ends.wait(30)
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["max_tokens"] < 1:
            self._send(400, {"error": {"message": "max_tokens must be at least 1", "code": "invalid_value"}})
            return
        begun = int(self.headers.get("Last-Event-ID", "a:1:0:0").split(":")[2])
        self.send_response(200)
        if self.server.max_silence is not None:
            self.send_header(MAX_SILENCE_HEADER, self.server.max_silence)
        if self.server.fallback_port is not None:
            self.send_header(FALLBACK_PORT_HEADER, str(self.server.fallback_port))
        self.end_headers()
        for sent, token in enumerate(TOKENS[begun:]):
            if sent == self.server.cut_after:
                return
            if sent == self.server.hang_after:
                self.server.ends.wait(30)
                return
            last = "length" if begun + sent + 1 == len(TOKENS) else None
            choice = {"index": 0, "text": str(token), "finish_reason": last, "token_ids": [token]}
            event = {"id": "a", "model": "m", "seed": 1, "system_fingerprint": "f", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(event)}\nid: a:1:{begun + sent + 1}:0\n\n".encode())
        usage = {"prompt_tokens": 1, "completion_tokens": len(TOKENS), "total_tokens": len(TOKENS) + 1}
        told = {"id": "a", "model": "m", "choices": [], "usage": usage}
        self.wfile.write(f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n".encode())

    def _send(self, status: int, value: dict) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    # A machine that is busy with other things must not make a server that is well look hung.
    monkeypatch.setattr(client_base, "_SOUND_S", 2.0)
    servers = []
    with ThreadPoolExecutor() as pool:

        def start(**options: int) -> Server:
            servers.append(Server(**options))
            pool.submit(servers[-1].serve_forever, 0.01)
            return servers[-1]

        yield start
        for server in servers:
            server.ends.set()
            server.shutdown()
            server.server_close()


def blocking(urls: str | list[str], method: str, *arguments: Any, **options: Any) -> tuple[Any, str]:
    with Client(urls, timeout=10) as client:
        found = getattr(client, method)(*arguments, **options)
        return list(found) if method.startswith("stream") else found, client.url


def awaiting(urls: str | list[str], method: str, *arguments: Any, **options: Any) -> tuple[Any, str]:
    async def ask() -> tuple[Any, str]:
        async with AsyncClient(urls, timeout=10) as client:
            found = getattr(client, method)(*arguments, **options)
            return [chunk async for chunk in found] if method.startswith("stream") else await found, client.url

    return asyncio.run(ask())


either = pytest.mark.parametrize("ask", [blocking, awaiting])


def test_urls_are_a_string_or_a_list_with_or_without_v1():
    assert list(Addresses("http://a:1/v1, https://b/ ,").once_each()) == ["http://a:1", "https://b"]
    assert list(Addresses(["http://a", "http://b/v1/"]).once_each()) == ["http://a", "http://b"]
    for urls in ("", " , ", []):
        with pytest.raises(ClientError, match="no address given"):
            Addresses(urls)
    with pytest.raises(ClientError, match="http://HOST:PORT or https://HOST:PORT, got 'b:8000'"):
        Client("http://a,b:8000")


def test_requests_that_failed_together_move_on_once():
    addresses = Addresses("http://a,http://b,http://c")
    addresses.leave("http://a")
    addresses.leave("http://a")
    assert addresses.current == "http://b"
    assert list(addresses.once_each()) == ["http://b", "http://c", "http://a"]


@either
@pytest.mark.parametrize("method", ["health", "models", "status", "timeline"])
def test_what_is_looked_up_comes_from_the_address_that_answers(ask, method, serve, dead):
    server = serve()
    found, url = ask(f"{dead},{server.url}", method)
    assert found
    assert (len(server.paths), url) == (1, server.url)


@either
@pytest.mark.parametrize("method", ["complete", "stream_complete"])
def test_an_answer_comes_from_the_address_that_answers(ask, method, serve, dead):
    server = serve()
    found, url = ask([dead, dead + "/v1", server.url], method, "x", max_tokens=4)
    text = "".join(chunk.text for chunk in found) if isinstance(found, list) else found.text
    assert text == "5678"
    assert (len(server.paths), url) == (1, server.url)


@either
@pytest.mark.parametrize("method", ["complete", "stream_complete"])
def test_an_answer_that_breaks_goes_on_at_the_next_address(ask, method, serve):
    first, second = serve(cut_after=2), serve()
    found, url = ask([first.url, second.url], method, "x", max_tokens=4)
    text = "".join(chunk.text for chunk in found) if isinstance(found, list) else found.text
    assert text == "5678"
    assert (len(first.paths), len(second.paths), url) == (1, 1, second.url)


@either
@pytest.mark.parametrize("method", ["complete", "stream_complete", "health", "models"])
def test_the_error_names_every_address_when_nobody_answers(ask, method, dead):
    arguments = ["x"] if "complete" in method else []
    with pytest.raises(ClientError, match=f"no answer from {dead} and {dead}: "):
        ask(f"{dead},{dead}", method, *arguments)


@either
def test_a_refusal_is_an_answer(ask, serve):
    first, second = serve(), serve()
    with pytest.raises(BadRequestError, match="max_tokens must be at least 1"):
        ask([first.url, second.url], "complete", "x", max_tokens=0)
    assert (len(first.paths), second.paths) == (1, [])


def test_whoever_is_answered_stays(serve):
    first, second = serve(), serve()
    with Client([first.url, second.url]) as client:
        assert [client.complete("x", max_tokens=4).text for _ in range(3)] == ["5678"] * 3
    assert (len(first.paths), second.paths) == (3, [])


@either
def test_a_stream_whose_server_falls_silent_goes_on_where_a_proxy_answers(ask, serve, monkeypatch):
    """The first proxy is well, and sends who comes again to another ingress; the second one hangs, and nobody waits for it."""
    monkeypatch.setattr(resumable, "_BEGIN_S", 20.0)
    first, hung, starting = serve(hang_after=2, max_silence="0.2"), serve(sound=None), serve(sound=503)
    began = time.monotonic()
    chunks, url = ask([first.url, hung.url, starting.url], "stream_complete", "x", max_tokens=4)
    # The client would wait for 20 seconds for an answer of the second one; its own patience is ten.
    assert time.monotonic() - began < 8.0
    assert "".join(chunk.text for chunk in chunks) == "5678"
    assert (len(first.paths), hung.paths, starting.paths, url) == (2, [], [], first.url)


@either
def test_a_proxy_that_starts_or_drains_is_better_than_one_that_is_silent(ask, serve, dead, monkeypatch):
    monkeypatch.setattr(resumable, "_LATE_S", -1.2)
    first, hung, draining = serve(sound=None), serve(sound=None), serve(sound=503)
    chunks, url = ask([first.url, dead, hung.url, draining.url], "stream_complete", "x", max_tokens=4)
    assert "".join(chunk.text for chunk in chunks) == "5678"
    assert (len(first.paths), hung.paths, len(draining.paths), url) == (1, [], 1, draining.url)


def test_of_streams_that_broke_together_one_looks_where_to_go_on(serve):
    first, second = serve(hang_after=2, max_silence="0.5"), serve()

    async def ask() -> list[str]:
        async with AsyncClient([first.url, second.url], timeout=10) as client:
            return [
                answer.text for answer in await asyncio.gather(*(client.complete("x", max_tokens=4) for _ in range(8)))
            ]

    assert asyncio.run(ask()) == ["5678"] * 8
    assert len(first.paths) == len(second.paths) == 8
    assert first.looks + second.looks < 8


def test_nobody_to_connect_to_is_waited_for_once_somebody_took_the_request():
    refused = httpx.ConnectError("nobody")
    request = {"url": "/v1/completions", "json": {"prompt": "x", "return_token_ids": True}}
    stream = ResumableStream(request, max_resumes=3, num_addresses=2)
    assert [stream.seconds_to_wait(refused) for _ in range(2)] == [0.0, None]
    cut = httpx.ReadError("died")
    stream = ResumableStream(request, max_resumes=2, num_addresses=2)
    # Twice at each address.
    assert [stream.seconds_to_wait(cut) is None for _ in range(5)] == [False, False, False, False, True]
    clock = [0.0]
    stream = ResumableStream(request, max_resumes=9, now=lambda: clock[0])
    assert stream.seconds_to_wait(cut) is not None
    waits = []
    while (wait := stream.seconds_to_wait(refused)) is not None:
        waits.append(wait)
        clock[0] += wait
    # Who waits knocks often, and gives up no sooner: 0.2, 0.4, 0.8, 1.6 and four times 2 seconds, or half of each.
    assert max(waits) <= 0.2
    assert 5.5 <= clock[0] <= 11.0


@either
def test_a_look_passes_over_an_address_that_hangs(ask, serve, monkeypatch):
    monkeypatch.setattr(client_base, "_LOOK_S", 0.2)
    well = serve()
    with socket.create_server(("127.0.0.1", 0)) as hung:
        began = time.monotonic()
        _, url = ask([f"http://127.0.0.1:{hung.getsockname()[1]}", well.url], "status")
    assert time.monotonic() - began < 5
    assert (url, len(well.paths)) == (well.url, 1)


def test_an_answer_that_is_complete_is_complete_though_its_connection_breaks_then():
    stream = ResumableStream({"url": "/v1/completions", "json": {"prompt": "x"}}, max_resumes=0)
    stream.feed("data: [DONE]")
    with Client("http://a") as client:
        assert client._seconds_to_wait(stream, "http://a", httpx.ReadError("died")) == 0.0


@either
def test_a_server_that_is_silent_for_longer_than_it_promised_is_left(serve, ask):
    hung, well = serve(hang_after=2, max_silence="0.2"), serve()
    began = time.monotonic()
    answer, url = ask([hung.url, well.url], "complete", "x", max_tokens=4, return_token_ids=True)
    # The client's own patience is ten seconds.
    assert time.monotonic() - began < 5
    assert (answer.choices[0].token_ids, url) == (TOKENS, well.url)
    assert (len(hung.paths), len(well.paths)) == (1, 1)


def test_a_client_that_knows_one_address_goes_on_where_its_server_said(serve):
    other = serve()
    first = serve(cut_after=2, fallback_port=other.server_port)

    async def ask_async() -> str:
        async with AsyncClient(first.url) as client:
            return (await client.complete("x", max_tokens=4)).text

    with Client(first.url) as client:
        first.sound = 503
        assert client.complete("x", max_tokens=4).text == "5678"
        assert client.url == other.url
    assert asyncio.run(ask_async()) == "5678"
    assert other.paths == ["/v1/completions"] * 2


@pytest.mark.parametrize(
    ("sound", "other_sound", "key"),
    [
        (200, 200, None),  # its proxy is well: what it told of is only a way round
        (503, 404, None),  # somebody else listens there
        (503, 200, "secret"),  # who would be sent the key
    ],
)
def test_a_client_stays_where_it_is_rather_than_go_to_a_learned_address(serve, sound, other_sound, key):
    other = serve(sound=other_sound)
    first = serve(cut_after=2, fallback_port=other.server_port, sound=sound)
    with Client(first.url, api_key=key) as client:
        assert client.complete("x", max_tokens=4).text == "5678"
        assert client.url == first.url
        assert client._connect_s == 10.0
    wanted = 0 if key else 1
    # The first address may have answered before the other one was asked.
    wait_for(lambda: other.looks >= wanted, 5, "nobody asked the other address")
    assert other.looks == wanted and other.paths == []


@pytest.mark.parametrize("key", ["secret\n", "two secrets", "secret-cl\u00e9"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key):
    """HTTP libraries refuse it too, and show it."""
    with pytest.raises(ClientError, match="api_key: expected visible ASCII") as caught:
        Client("http://127.0.0.1:1", api_key=key)
    assert "secret" not in str(caught.value)


def test_neither_clients_nor_their_errors_show_keys_and_passwords():
    with Client(
        "http://name:secret@127.0.0.1:1,http://name:secret@127.0.0.1:2", api_key="secret", max_resumes=0
    ) as client:
        shown = [repr(client), repr(vars(client)["_http"]), repr(client._http.headers)]
        for ask in (client.models, lambda: client.complete("x"), client.status):
            with pytest.raises(ClientError) as caught:
                ask()
            assert "127.0.0.1:1 and http://127.0.0.1:2" in str(caught.value)
            error: BaseException | None = caught.value
            while error is not None:
                shown.append(f"{error!r} {error}")
                error = error.__cause__ or error.__context__
    assert not [text for text in shown if "secret@" in text or "Bearer" in text]
    with pytest.raises(ClientError) as refused:
        Client("ftp://name:secret@127.0.0.1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://127.0.0.1:99999", "http://", "https:///v1"])
def test_an_address_has_a_host_and_a_port_that_can_be(url):
    with pytest.raises(ClientError, match="url: expected http://HOST:PORT"):
        Client(url)


def test_clients_read_the_certificates_once():
    with Client("http://a:1") as one, Client("https://b:1") as two:
        contexts = {client._http._transport._pool._ssl_context for client in (one, two)}
    assert len(contexts) == 1


def test_a_learned_address_is_of_the_same_host_and_never_beside_tls():
    for url, also in [
        ("http://10.0.0.1:8000/", "http://10.0.0.1:8500"),
        ("http://[::1]:8000/v1", "http://[::1]:8500"),
        ("http://me:pw@proxy/prefix", "http://me:pw@proxy:8500/prefix"),
    ]:
        addresses = Addresses(url)
        addresses.learn_port("8500")
        assert addresses.in_turn() == [addresses.current, also]
        addresses.learn_port("8600")  # the server was started again
        assert addresses.in_turn() == [addresses.current, also.replace("8500", "8600")]
    for given, port in [
        ("https://10.0.0.1:8000", "8500"),
        ("http://10.0.0.1:8000", "8000"),
        ("http://a,http://b", "8500"),
        *[("http://a:1", bad) for bad in ("", "0", "65536", "-1", "8500x", "@evil:80", "٣x")],
    ]:
        addresses = Addresses(given)
        count = len(addresses)
        addresses.learn_port(port)
        assert len(addresses) == count, (given, port)


def test_a_new_request_goes_back_to_the_address_that_was_given_after_a_while():
    now = 100.0
    addresses = Addresses("http://a:1", lambda: now)
    addresses.learn_port("2")
    addresses.leave("http://a:1")
    addresses.settle()
    assert addresses.current == "http://a:2"
    now += 31.0
    addresses.settle()
    assert addresses.current == "http://a:1"
    both = Addresses("http://a:1,http://b:1", lambda: now)
    both.leave("http://a:1")
    now += 1000.0
    both.settle()
    assert both.current == "http://b:1"
