"""The end of a process is seen before its connections break."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cluster.outputs import AttachRequired
from deployments.process_end import has_ended
from deployments.token_socket import read_messages
from deployments.token_streams import TokenStreams

# A process whose sockets stay open after it was killed, as on a machine that is busy taking it down: a child has them, too.
_LISTENER = """
import os, socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
connection, _ = listening.accept()
if os.fork():
    connection.recv(1000)
    connection.sendall(bytes([0, 0, 0, 2]) + b"[]")
    print(os.getpid(), flush=True)
time.sleep(60)
"""


class Runner:
    """What a TokenStream asks of its runner's handle."""

    class _Call:
        def remote(self, *_):
            return None

    detach = abort = _Call()


@pytest.fixture
def listener(tmp_path):
    """A process that sends one empty message, and the path of its socket."""
    path = str(tmp_path / "s")
    process = subprocess.Popen([sys.executable, "-c", _LISTENER, path], stdout=subprocess.PIPE, start_new_session=True)
    while not os.path.exists(path):
        assert process.poll() is None
        time.sleep(0.01)
    yield process, path
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_process_has_ended_when_its_main_thread_has():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not has_ended(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    assert not has_ended(child.pid)
    child.kill()
    deadline = time.monotonic() + 10
    while not has_ended(child.pid):  # nobody has waited for it: it is a zombie
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    assert has_ended(child.pid)
    assert not has_ended(os.getpid())


async def test_a_token_socket_says_who_listens(listener):
    process, path = listener
    seen: list[int] = []
    messages = read_messages(path, "me", {}, seen.append)
    assert await anext(messages) == []
    assert seen == [process.pid]
    await messages.aclose()


async def test_a_stream_is_lost_when_its_engine_has_ended_though_its_socket_is_still_open(listener, monkeypatch):
    process, path = listener
    lost: asyncio.Future = asyncio.get_running_loop().create_future()
    streams = TokenStreams("me", lambda *_: None, dict, lambda stream, why: lost.set_result((stream, why)), 60.0)

    async def messages(self, stream):
        async for deltas in read_messages(path, "me", {}, stream.reached):
            yield deltas

    monkeypatch.setattr(TokenStreams, "_messages", messages)
    streams.attach(AttachRequired("engine-1", Runner(), "f"))
    stream = streams.of("engine-1")
    while not stream.pid:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.6)
    assert stream.alive
    process.kill()
    assert await asyncio.wait_for(lost, 10) == (stream, "its process has ended")
    assert streams.of("engine-1") is None
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    # What would have told of the death otherwise has not happened.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
    await streams.close()
