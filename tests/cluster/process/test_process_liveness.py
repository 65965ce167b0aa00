"""The end of a process is seen before its connections break."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cluster.config import EngineConfig, LLMConfig
from cluster.outputs import AttachRequired
from cluster.process import process_liveness as process_end
from cluster.process.process_liveness import PeerProcess, has_ended
from deployments.replica import runner_watch
from deployments.replica.frames import frame
from deployments.replica.runner_watch import RunnerWatch
from deployments.replica.streaming_runner import StreamingRunner
from deployments.replica.token_messages import VERSION
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStreams
from tests.deployments.replica.messages import read_messages

# A process whose sockets stay open after it was killed, as on a machine that is busy taking it down: a child has them, too.
_LISTENER = """
import os, socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
connection, _ = listening.accept()
if os.fork():
    connection.recv(1000)
    connection.sendall(bytes.fromhex(sys.argv[2]))
    connection.sendall(bytes([0, 0, 0, 3]) + b"\\x92\\x90\\x90")
    print(os.getpid(), flush=True)
time.sleep(60)
"""


class Call:
    """A method of an actor's handle; notes what it was called with."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.calls: list[tuple] = []

    def remote(self, *arguments: object) -> asyncio.Future:
        self.calls.append(arguments)
        answered = asyncio.get_running_loop().create_future()
        answered.set_result(self.answer)
        return answered


class Runner:
    """What streams and replicas ask of a runner's handle."""

    def __init__(self, pid: int, path: str = "") -> None:
        self.token_socket = Call(("here", path))
        self.ping = Call(pid)
        self.drain = Call(0)
        self.detach = self.abort = Call()


@pytest.fixture
def listener(tmp_path):
    """A process that sends one empty message, and the path of its socket."""
    path = str(tmp_path / "s")
    command = [sys.executable, "-c", _LISTENER, path, frame(VERSION).hex()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    while not os.path.exists(path):
        assert process.poll() is None
        time.sleep(0.01)
    yield process, path
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_has_ended_when_its_main_thread_has(child):
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


def test_a_look_that_fails_is_no_death(monkeypatch):
    def no_descriptors(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(process_end, "open", no_descriptors, raising=False)
    assert not has_ended(os.getpid())
    assert not has_ended(2**22 + 1)


def test_a_peer_that_was_never_seen_from_here_has_not_ended(child):
    assert not PeerProcess(2**22 + 1).has_ended()  # an id of another container
    seen = PeerProcess(child.pid)
    assert not seen.has_ended()
    child.kill()
    child.wait()
    assert seen.has_ended()


async def test_a_token_socket_says_who_listens(listener):
    process, path = listener
    seen: list[int] = []
    messages = read_messages(path, "me", {}, lambda pid, _: seen.append(pid))
    assert await anext(messages) == []
    assert seen == [process.pid]
    await messages.aclose()


async def test_a_stream_is_lost_when_its_engine_has_ended_though_its_socket_is_still_open(listener, monkeypatch):
    process, path = listener
    lost: asyncio.Future = asyncio.get_running_loop().create_future()
    streams = TokenStreams(
        "me", EngineChoices(), lambda *_: None, dict, lambda stream, why: lost.set_result((stream, why)), 60.0
    )

    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr("deployments.routing.token_streams.ray.get_runtime_context", lambda: context)
    streams.attach(AttachRequired("engine-1", Runner(process.pid, path), "f"))
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


async def test_a_replica_notices_that_its_runner_has_ended_though_its_calls_do_not_fail(child, monkeypatch):
    killed = []
    monkeypatch.setattr(runner_watch, "node_drain_seconds", lambda: None)
    monkeypatch.setattr(runner_watch.ray, "kill", killed.append)
    died: asyncio.Future = asyncio.get_running_loop().create_future()
    runner = Runner(child.pid)
    watch = RunnerWatch(runner, "engine-1", LLMConfig(model="x"), 60.0, died.set_result)
    await asyncio.sleep(0.6)
    assert not died.done()
    child.kill()
    assert await asyncio.wait_for(died, 5) == "the runner's process has ended"
    await asyncio.sleep(0.1)
    assert killed == [runner]
    watch.close()


async def test_an_engine_hands_over_before_its_node_is_gone_however_long_it_may_drain(child, monkeypatch):
    monkeypatch.setattr(runner_watch, "node_drain_seconds", lambda: 9.0)
    runner = Runner(child.pid)
    config = LLMConfig(model="x", drain_timeout_s=60.0)
    watch = RunnerWatch(runner, "engine-1", config, 120.0, lambda why: None)
    deadline = time.monotonic() + 5
    while not runner.drain.calls:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert watch.node_drains
    assert runner.drain.calls == [(9.0 - runner_watch._DRAIN_MARGIN_S,)]
    watch.close()


async def test_a_runner_ends_when_its_replica_has_ended(child, monkeypatch):
    ended = asyncio.Event()
    monkeypatch.setattr(StreamingRunner, "_exit_soon", lambda self: ended.set())
    runner = StreamingRunner(EngineConfig(model="x", hang_timeout_s=60.0), "engine-1")
    assert await runner.ping(child.pid) == os.getpid()
    await asyncio.sleep(0.6)
    assert not ended.is_set()
    child.kill()
    await asyncio.wait_for(ended.wait(), 5)
