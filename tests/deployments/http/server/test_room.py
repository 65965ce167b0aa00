"""What an ingress says of its room: by counted requests, with every answer, and only where HAProxy takes it away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from cluster.scaling.packing import PACKING
from deployments.http.server.room import ROOM_HEADER, Room, RoomCycle, tell_room
from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK
from tests.deployments.http.server.listening import listening
from tests.waiting import until


class Clocks:
    """Seconds, and seconds of CPU time."""

    def __init__(self) -> None:
        self.now = self.cpu = 100.0
        self.most = 1000

    def room(self) -> Room:
        return Room(lambda: self.most, lambda: self.now, lambda: self.cpu)

    def pass_by(self, seconds: float, share: float) -> None:
        self.now += seconds
        self.cpu += seconds * share


def said(room: Room) -> tuple[int, int]:
    name, value = room.header()
    assert name == ROOM_HEADER
    limit, num_open = map(int, value.split(b"/"))
    return limit, num_open


def test_it_follows_what_the_requests_of_the_last_second_took():
    clocks = Clocks()
    room = clocks.room()
    assert said(room) == (PACKING.first, 0)
    for _ in range(14):
        room.change(1)
    assert said(room) == (PACKING.first, 14)
    clocks.pass_by(0.5, 0.99 * PACKING.aim)
    assert said(room) == (PACKING.first, 14), "half a second says little"
    clocks.pass_by(0.5, 0.99 * PACKING.aim)
    assert said(room) == (14, 14), "as many as take what is aimed at"
    for _ in range(10):
        room.change(-1)
    clocks.pass_by(2.0, 0.4)
    assert said(room) == (int(PACKING.aim * 4 / 0.4), 4)
    clocks.pass_by(1.0, 0.8)
    assert said(room) == (int(PACKING.aim * 4 / 0.8), 4), "half of it was a wait for a core: more would wait longer"
    clocks.pass_by(30.0, 0.01)
    assert said(room) == (PACKING.first, 4), "what next to nothing is taken by"


def test_there_is_no_room_for_more_than_it_may_hold():
    clocks = Clocks()
    room = clocks.room()
    for clocks.most in (5, 0, 40):
        assert said(room) == (max(1, min(clocks.most, PACKING.first)), 0)


def test_requests_count_as_long_as_they_are_open():
    clocks = Clocks()
    room = clocks.room()
    room.change(20)
    clocks.pass_by(0.5, 1.0)
    room.change(-20)
    clocks.pass_by(0.5, 0.0)
    # Ten on average, for half a core.
    assert said(room) == (int(PACKING.aim * 10 / 0.5), 0)


async def application(scope, receive, send) -> None:
    if scope["path"] == "/fails":
        raise RuntimeError("this application fails")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    if scope["path"] == "/stays":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture(autouse=True)
def no_room(our_cycle, monkeypatch) -> None:
    monkeypatch.setattr(RoomCycle, "room", None)


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    async with (
        listening(application, http="httptools") as back,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{back.port}") as client,
    ):
        yield client


async def test_every_answer_has_it_and_every_end_is_counted(monkeypatch):
    room = Room(lambda: 1000)
    monkeypatch.setattr(RoomCycle, "room", room)
    async with served() as client:
        for path, status in (("/", 200), ("/fails", 500), ("/", 200)):
            answer = await client.get(path)
            assert answer.status_code == status
            assert answer.headers[ROOM_HEADER.decode()] == f"{PACKING.first:.0f}/1"
        assert answer.headers["x-own"] == "1"
        assert said(room)[1] == 0
        async with client.stream("GET", "/stays"), client.stream("GET", "/stays") as second:
            assert second.headers[ROOM_HEADER.decode()] == f"{PACKING.first:.0f}/2"
        await until(lambda: said(room)[1] == 0, 10)


async def test_who_is_no_ingress_says_nothing():
    async with served() as client:
        assert ROOM_HEADER.decode() not in (await client.get("/")).headers


@pytest.mark.parametrize(
    ("is_used", "binary", "tells"),
    [("1", str(HAPROXY_ON_LOOPBACK), True), ("1", "/usr/sbin/haproxy", False), ("0", str(HAPROXY_ON_LOOPBACK), False)],
)
def test_it_is_said_only_where_haproxy_is_ours(monkeypatch, is_used, binary, tells):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", is_used)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", binary)
    tell_room(lambda: 3)
    assert (RoomCycle.room is not None) == tells
    if RoomCycle.room is not None:
        assert said(RoomCycle.room) == (3, 0)
