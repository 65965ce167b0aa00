"""Two ways to write what a step brings to connections: the same bytes in the same order, sent once the step is over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.native import step_writer
from deployments.native.step_writer import LoopStepWriter, StepWriter, native_module, one_step
from gpu_ops.build import OpBuildError


def native_writer() -> StepWriter:
    module = native_module()
    assert module is not None
    return module.StepWriter()


WRITERS = [native_writer, LoopStepWriter]
FLOW = SimpleNamespace(write_paused=False)

# What is done to one of two connections: so many bytes to its outlet or past it, a read at the other side of at most so many.
_actions = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "send", "read"]), st.integers(0, 1), st.integers(1, 9_000)),
        st.sampled_from([("begin", 0, 0), ("end", 0, 0), ("loop", 0, 0)]),
    ),
    max_size=60,
)


async def _connected() -> tuple[asyncio.Transport, socket.socket]:
    ours, theirs = socket.socketpair()
    # So little that much of what is sent is only taken in part, or not at all.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
    theirs.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    return transport, theirs


async def _play(make: Callable[[], StepWriter], actions: list[tuple[str, int, int]]) -> None:
    writer, sides = make(), [await _connected() for _ in range(2)]
    outlets = [writer.outlet(transport, FLOW, transport.get_extra_info("socket").fileno()) for transport, _ in sides]
    sent, got = [b"", b""], [b"", b""]

    def read(which: int, size: int) -> int:
        try:
            data = sides[which][1].recv(size)
        except BlockingIOError:
            return 0
        got[which] += data
        return len(data)

    for number, (action, which, size) in enumerate(actions):
        data = bytes([number % 251]) * size
        if action == "write":
            outlets[which].write(data)
            sent[which] += data
        elif action == "send":  # as an answer's end is, which is no part of a step
            outlets[which].flush()
            sides[which][0].write(data)
            sent[which] += data
        elif action == "read":
            read(which, size)
        elif action == "loop":
            await asyncio.sleep(0)
        else:
            getattr(writer, action)()
    writer.end()
    for which in range(2):
        for _ in range(10_000):
            if len(got[which]) == len(sent[which]):
                break
            if not read(which, 1 << 16):
                await asyncio.sleep(0.0005)
        assert got[which] == sent[which]
        assert read(which, 1) == 0
    for transport, theirs in sides:
        transport.abort()
        theirs.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("make", WRITERS)
@settings(max_examples=60, deadline=None)
@given(_actions)
def test_bytes_come_in_order_however_little_a_connection_takes(run, make, actions):
    run(_play(make, actions))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("make", WRITERS)
def test_what_waits_in_the_transport_goes_first_though_there_is_room_by_now(run, make):
    async def play() -> None:
        transport, theirs = await _connected()
        outlet = make().outlet(transport, FLOW, transport.get_extra_info("socket").fileno())
        outlet.write(b"a" * 50_000)
        assert transport.get_write_buffer_size() > 0
        got = theirs.recv(1 << 16)
        outlet.write(b"b")
        while len(got) < 50_001:
            await asyncio.sleep(0.001)
            with contextlib.suppress(BlockingIOError):
                got += theirs.recv(1 << 16)
        assert got == b"a" * 50_000 + b"b"
        transport.abort()
        theirs.close()

    run(play())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("make", WRITERS)
def test_a_step_is_sent_at_its_end_and_all_else_at_once(run, make):
    async def play() -> None:
        transport, theirs = await _connected()
        writer = make()
        outlet = writer.outlet(transport, FLOW, transport.get_extra_info("socket").fileno())
        outlet.write(b"a")
        assert theirs.recv(9) == b"a"
        writer.begin()
        outlet.write(b"b")
        outlet.write(b"c")
        await asyncio.sleep(0.01)
        with pytest.raises(BlockingIOError):
            theirs.recv(9)
        writer.end()
        assert theirs.recv(9) == b"bc"
        outlet.write(b"d")
        assert theirs.recv(9) == b"d"
        transport.abort()
        theirs.close()

    run(play())


@pytest.mark.parametrize("make", WRITERS)
async def test_a_connection_that_has_ended_gets_nothing_and_holds_up_nobody(make):
    """Its descriptor may be another connection's by then."""
    writer, sides = make(), [await _connected() for _ in range(3)]
    outlets = [writer.outlet(transport, FLOW, transport.get_extra_info("socket").fileno()) for transport, _ in sides]
    sides[0][0].abort()
    await asyncio.sleep(0.01)
    stranger = await _connected()
    writer.begin()
    for outlet in outlets:
        outlet.write(b"x")
    sides[1][1].close()
    writer.end()
    assert sides[2][1].recv(9) == b"x"
    with pytest.raises(BlockingIOError):
        stranger[1].recv(9)
    for transport, theirs in (*sides, stranger):
        transport.abort()
        theirs.close()


class Failing(asyncio.Transport):
    """Of a kind that nobody thought of."""

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 1

    def write(self, data: bytes) -> None:
        raise RuntimeError("no more")


@pytest.mark.parametrize("make", WRITERS)
async def test_one_connections_failure_is_told_and_is_no_others(make, caplog, monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: told.append(str(found.exc_value)))
    transport, theirs = await _connected()
    writer = make()
    failing = writer.outlet(Failing(), FLOW, -1)
    well = writer.outlet(transport, FLOW, transport.get_extra_info("socket").fileno())
    writer.begin()
    failing.write(b"x")
    well.write(b"y")
    with caplog.at_level(logging.ERROR, "ray.serve"):
        writer.end()
    assert theirs.recv(9) == b"y"
    assert "no more" in caplog.text + "".join(told)
    transport.abort()
    theirs.close()


def test_outlets_are_collected_with_what_holds_them():
    class Holder:
        pass

    holder, transport = Holder(), Failing()
    holder.outlet = native_writer().outlet(transport, FLOW, -1)
    transport.holder = holder
    gone = weakref.ref(holder)
    del holder, transport
    gc.collect()
    assert gone() is None


def test_without_a_compiler_transports_write(monkeypatch, caplog):
    def fails(*arguments, **options):
        raise OpBuildError("no C++ compiler found")

    monkeypatch.setattr(step_writer, "load_extension", fails)
    monkeypatch.setattr(step_writer, "_of_thread", SimpleNamespace())
    native_module.cache_clear()
    try:
        assert native_module() is None
        assert "no C++ compiler found" in caplog.text
        with one_step():
            assert isinstance(step_writer.step_writer(), LoopStepWriter)
    finally:
        native_module.cache_clear()
