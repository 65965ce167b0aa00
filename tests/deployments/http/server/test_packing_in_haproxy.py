"""Few requests go to few ingresses: a real HAProxy, with what the script makes of its configuration, before servers that tell."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deployments.http.server.room import ROOM_HEADER
from deployments.start.serve_environment import free_port
from tests.deployments.http.server.listening import listening
from tests.deployments.http.server.real_haproxy import configured, haproxy_of_loop
from tests.waiting import until

# As Ray Serve writes it, without what is not at stake.
CONFIG = """
global
    maxconn 400
defaults
    mode http
    timeout connect 1s
    timeout client 20s
    timeout server 20s
    option redispatch 1
    option http-no-delay
    retry-on conn-failure
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{front}
    use_backend http-app
backend http-app
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fall 2 rise 1 inter 100ms check
{servers}
    server fallback 127.0.0.1:1 check backup
backend http-app-via-ingress-request-router
    server INGRESS-0 127.0.0.1:1 track http-app/INGRESS-0
"""
SERVER = "    server INGRESS-{number} {host}:{port} check observe layer4 error-limit 1 on-error mark-down"


class Ingress:
    """Answers with a head at once and with an end when it is let go."""

    def __init__(self, host: str = "127.0.0.1", limit: int = 8) -> None:
        self.host, self.limit = host, limit
        self.says, self.others, self.num_open = True, 0, 0
        self.ends, self.lives = asyncio.Event(), asyncio.Event()
        self.lives.set()

    async def answer(self, scope, receive, send) -> None:
        self.num_open += scope["path"] != "/-/healthz"
        await self.lives.wait()
        if scope["path"] == "/-/healthz":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            room = (ROOM_HEADER, b"%d/%d" % (self.limit, max(0, self.num_open + self.others)))
            head = {"status": 503 if scope["path"] == "/error" else 200, "headers": [room] if self.says else []}
            await send({"type": "http.response.start", **head})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await self.ends.wait()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.num_open -= 1

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[None]:
        async with listening(self.answer, self.host, port) as (self.port, server):
            try:
                yield
            finally:
                server.force_exit = True


class Proxied:
    """Ingresses, HAProxy before them, and clients."""

    def __init__(self, folder: Path, ingresses: list[Ingress], client: httpx.AsyncClient) -> None:
        self.ingresses, self._client, self._folder = ingresses, client, folder
        self.front = free_port()
        self._answers: list[httpx.Response] = []

    @property
    def opened(self) -> list[int]:
        return [ingress.num_open for ingress in self.ingresses]

    @property
    def config(self) -> str:
        """As Serve writes it."""
        servers = [SERVER.format(number=k, host=one.host, port=one.port) for k, one in enumerate(self.ingresses)]
        return CONFIG.format(front=self.front, servers="\n".join(servers))

    @contextlib.asynccontextmanager
    async def haproxy(self) -> AsyncIterator[None]:
        async with haproxy_of_loop(self._folder, self.config, self.front):
            yield

    async def ask(self, path: str = "/") -> httpx.Response:
        """Until the head of the answer; it stays open."""
        url = f"http://127.0.0.1:{self.front}{path}"
        response = await self._client.send(self._client.build_request("GET", url), stream=True)
        self._answers.append(response)
        return response

    async def ask_one_by_one(self, number: int) -> None:
        for _ in range(number):
            await self.ask()

    async def let_go(self) -> None:
        """All answers end."""
        for ingress in self.ingresses:
            ingress.ends.set()
        for answer in self._answers:
            with contextlib.suppress(httpx.HTTPError):
                await answer.aread()
        self._answers.clear()
        await until(lambda: not any(self.opened), 10)
        for ingress in self.ingresses:
            ingress.ends = asyncio.Event()

    async def let_all_be_known(self) -> None:
        """Who has never answered gets a request once nobody who is known has room."""
        while not all(self.opened):
            answer = await self.ask()
            assert answer.status_code == 200, self.opened
        await self.let_go()


@contextlib.asynccontextmanager
async def proxied(folder: Path, *ingresses: Ingress) -> AsyncIterator[Proxied]:
    """All is served, and nothing is known of anybody."""
    async with contextlib.AsyncExitStack() as stack:
        for ingress in ingresses:
            await stack.enter_async_context(ingress.serving())
        limits = httpx.Limits(max_connections=None)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=20, limits=limits))
        running = Proxied(folder, list(ingresses), client)
        async with running.haproxy():
            yield running
            await running.let_go()


async def test_few_go_to_the_first_and_what_is_beyond_its_room_to_the_next(tmp_path):
    async with proxied(tmp_path, Ingress(), Ingress(), Ingress()) as running:
        await running.let_all_be_known()
        for expected in ([5, 0, 0], [8, 2, 0], [8, 8, 4], [8, 8, 8], [10, 10, 10]):
            await running.ask_one_by_one(sum(expected) - sum(running.opened))
            assert running.opened == expected
        await running.let_go()
        await running.ask_one_by_one(3)
        assert running.opened == [3, 0, 0], "nothing is left of having been full"


async def test_as_long_as_nobody_has_answered_the_proxy_does_as_before(tmp_path):
    async with proxied(tmp_path, Ingress(limit=0), Ingress(limit=0), Ingress(limit=0)) as running:
        await running.ask_one_by_one(9)
        assert running.opened == [3, 3, 3]


async def test_an_ingress_that_says_nothing_gets_what_it_got_before(tmp_path):
    silent = Ingress()
    silent.says = False
    async with proxied(tmp_path, silent, Ingress(limit=2)) as running:
        await running.let_all_be_known()
        await running.ask_one_by_one(6)
        assert running.opened == [3, 3]


async def test_the_first_that_is_down_is_passed_over_and_comes_back(tmp_path):
    first, second = Ingress(), Ingress()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(second.serving())
        async with first.serving():
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=20))
            running = Proxied(tmp_path, [first, second], client)
            await stack.enter_async_context(running.haproxy())
            await running.let_all_be_known()
            await running.ask_one_by_one(2)
            assert running.opened == [2, 0]
            await running.let_go()
        for _ in range(4):
            assert (await running.ask()).status_code == 200, "also the one by which it is found out"
        assert running.opened == [0, 4]
        async with first.serving(first.port):
            # Its checks succeed again.
            for _ in range(100):
                if first.num_open:
                    break
                await running.ask()
                await asyncio.sleep(0.02)
            assert first.num_open
            await running.let_go()


async def test_one_that_hangs_gets_no_more_than_it_had_room_for_and_nothing_once_its_checks_fail(tmp_path):
    async with proxied(tmp_path, Ingress(limit=4), Ingress(limit=4)) as running:
        first, second = running.ingresses
        await running.let_all_be_known()
        first.lives.clear()
        hanging = [asyncio.create_task(running.ask()) for _ in range(7)]
        await until(lambda: running.opened == [4, 3], 10)
        second.limit = 100
        await asyncio.sleep(1.0)  # two checks, of which each waits for a tenth of a second
        await running.ask_one_by_one(10)
        assert running.opened == [4, 13]
        first.lives.set()
        await asyncio.gather(*hanging)


async def test_a_new_process_learns_what_others_have_open(tmp_path):
    """The process before it keeps its answers, as proxies of other nodes have theirs."""
    async with proxied(tmp_path, Ingress(limit=6), Ingress(limit=6)) as running:
        await running.let_all_be_known()
        await running.ask_one_by_one(5)
        assert running.opened == [5, 0]
        running.front = free_port()
        async with running.haproxy():
            await running.ask_one_by_one(7)
            first, second = running.opened
            assert (first, second) in ((6, 6), (5, 7)), "who never answered gets one only where nobody known has room"
            await running.let_go()


async def test_others_that_fill_an_ingress_are_told_apart_from_own_requests(tmp_path):
    async with proxied(tmp_path, Ingress(limit=8), Ingress(limit=8)) as running:
        await running.let_all_be_known()
        running.ingresses[0].others = 6
        await running.ask_one_by_one(6)
        assert running.opened == [2, 4]


async def test_requests_that_an_ingress_has_not_counted_yet_make_no_room(tmp_path):
    async with proxied(tmp_path, Ingress(limit=8), Ingress(limit=8)) as running:
        await running.let_all_be_known()
        running.ingresses[0].others = -6
        await running.ask_one_by_one(12)
        assert running.opened == [8, 4]


async def test_a_burst_is_bounded_by_what_each_has_room_for(tmp_path):
    async with proxied(tmp_path, Ingress(), Ingress(), Ingress()) as running:
        await running.let_all_be_known()
        await asyncio.gather(*(running.ask() for _ in range(60)))
        assert running.opened == [20, 20, 20]
        await running.let_go()
        await asyncio.gather(*(running.ask() for _ in range(14)))
        assert running.opened == [8, 6, 0]


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/error", 503)])
async def test_no_client_sees_it(tmp_path, num, path, status):
    async with proxied(tmp_path, *(Ingress() for _ in range(num))) as running:
        answer = await running.ask(path)
        assert answer.status_code == status
        assert ROOM_HEADER.decode() not in answer.headers


async def test_ingresses_of_this_machine_come_first(tmp_path):
    async with proxied(tmp_path, Ingress("127.0.0.2"), Ingress(), Ingress("127.0.0.2")) as running:
        await running.let_all_be_known()
        await running.ask_one_by_one(10)
        assert running.opened == [2, 8, 0]


async def test_one_ingress_and_what_mirrors_it_are_left_alone(tmp_path):
    async with proxied(tmp_path, Ingress()) as running:
        text = configured(tmp_path, running.config)
        assert "use-server" not in text and "proc." not in text
        assert (tmp_path / "haproxy.cfg").read_text().count("X-Bireme-Room") == 1


async def test_without_awk_requests_are_spread_as_serve_has_it(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("grep", "head", "mv", "rm", "sed"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    async with proxied(tmp_path, Ingress(), Ingress()) as running:
        text = configured(tmp_path, running.config, PATH=str(tools))
        assert "use-server" not in text and text.count("server INGRESS-") == 3
        assert "http-response del-header X-Bireme-Room" in text
        assert not [*tmp_path.glob("haproxy.cfg.*")]


async def test_one_that_seems_full_of_others_requests_is_asked_one_at_a_time(tmp_path):
    first, second = Ingress(limit=8), Ingress(limit=8)
    async with proxied(tmp_path, first, second) as running:
        await running.let_all_be_known()
        first.others = 9
        await running.ask_one_by_one(4)
        assert running.opened == [1, 3], "it is full, and one is with it"
        await running.let_go()
        first.others = 0
        await running.ask_one_by_one(5)
        assert running.opened == [5, 0], "the first answer told that it is not"
