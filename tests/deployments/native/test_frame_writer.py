"""Two ways to write to connections from any thread: the same bytes in the same order, and nobody waits for who does not read."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator

import pytest

from deployments.native.frame_writer import FrameWriter, LoopWriter, Writer, frame_writer
from gpu_ops.build import OpBuildError
from tests.waiting import until


@pytest.fixture(params=[FrameWriter, LoopWriter])
def writer(request) -> Writer:
    return request.param()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A connection's transport, and its other side."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    theirs.settimeout(10)
    yield transport, theirs
    transport.close()
    theirs.close()


def read_all(side: socket.socket, pause_s: float = 0.0) -> bytes:
    got = bytearray()
    while data := side.recv(1 << 16):
        got += data
        time.sleep(pause_s)
    return bytes(got)


@pytest.mark.parametrize("pause_s", [0.0, 0.002])
async def test_bytes_of_each_thread_come_in_order_and_whole(writer, pair, pause_s):
    transport, theirs = pair
    connection = writer.open(transport)
    rng = random.Random(1)
    sizes = [[rng.choice((1, 100, 5_000, 200_000)) for _ in range(60)] for _ in range(2)]

    def say(letter: bytes, lengths: list[int]) -> None:
        for n, length in enumerate(lengths):
            assert connection.send(letter * length) >= 0
            if n % 3 == 0:
                connection.flush()

    reading = asyncio.create_task(asyncio.to_thread(read_all, theirs, pause_s))
    threads = [threading.Thread(target=say, args=(bytes([97 + n]), lengths)) for n, lengths in enumerate(sizes)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert connection.send(b"!") >= 0
    connection.close()
    assert connection.send(b"late") == -1
    got = await reading
    assert got.endswith(b"!") and [got.count(letter) for letter in (b"a", b"b")] == [sum(s) for s in sizes]
    assert len(got) == sum(map(sum, sizes)) + 1


async def test_who_does_not_read_is_not_waited_for_and_holds_up_nobody(writer, pair):
    transport, theirs = pair
    other_ours, other = socket.socketpair()
    other_transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=other_ours)
    blocked, free = writer.open(transport), writer.open(other_transport)
    began = time.monotonic()
    assert blocked.send(b"x" * 20_000_000) > 10_000_000
    blocked.flush()
    assert time.monotonic() - began < 5
    other.settimeout(10)
    for _ in range(20):
        free.send(b"y")
        free.flush()
        await asyncio.sleep(0)
        assert await asyncio.to_thread(other.recv, 10) == b"y"
    assert blocked.send(b"z") > 10_000_000
    blocked.flush()
    blocked.close()
    got = await asyncio.to_thread(read_all, theirs)
    assert len(got) == 20_000_001 and got.endswith(b"z")
    free.close()
    other.close()


async def test_a_connection_that_ends_at_once_says_nothing_more(writer, pair):
    transport, theirs = pair
    connection = writer.open(transport)
    connection.send(b"x" * 20_000_000)
    connection.flush()
    connection.close(at_once=True)
    transport.close()
    assert len(await asyncio.to_thread(read_all, theirs)) < 20_000_000
    connection.close()


async def test_a_reader_that_has_gone_is_told_of(writer, pair):
    transport, theirs = pair
    connection = writer.open(transport)
    theirs.close()

    def is_told() -> bool:
        told = connection.send(b"x")
        connection.flush()
        return told == -1

    await until(is_told, 10)
    connection.close()


async def test_nothing_of_ended_connections_is_left(writer):
    before = len(os.listdir("/proc/self/fd"))
    for n in range(40):
        ours, theirs = socket.socketpair()
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        connection = writer.open(transport)
        connection.send(b"x" * (1 if n % 2 else 20_000_000))
        connection.flush()
        connection.close(at_once=n % 4 == 0)
        transport.close()
        theirs.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before, 10)


def test_without_a_compiler_the_event_loop_writes(monkeypatch, caplog):
    def fails() -> None:
        raise OpBuildError("no C++ compiler found")

    monkeypatch.setattr("deployments.native.frame_writer._library", fails)
    assert isinstance(frame_writer(), LoopWriter)
    assert "no C++ compiler found" in caplog.text
