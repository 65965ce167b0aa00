"""The token socket carries what ``attach`` yields, and notices when either side goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from actors.delta_stream import HEARTBEAT_S, SubscriberStream
from cluster.grammar import Grammar
from cluster.journal import JournalGapError
from cluster.outputs import (
    ENGINE_LEAVES,
    AttachRequired,
    EngineLoad,
    PlainTokens,
    StreamItem,
    TokenDelta,
    TokenLogprobs,
)
from cluster.request import EngineRequest, RequestKey
from cluster.sampling_params import SamplingParams
from deployments.native.frame_writer import LoopWriter
from deployments.replica import token_socket
from deployments.replica.frames import MAX_REQUEST_BYTES, UnusableSocketError, frame
from deployments.replica.token_listener import RequestSender, listen
from deployments.replica.token_messages import VERSION
from deployments.replica.token_socket import TokenSocket
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStreams
from deployments.start.run_files.private_folder import private_base
from tests.deployments.conftest import App
from tests.deployments.replica.messages import read_messages
from tests.waiting import until

NOBODY = 65534


@pytest.fixture(autouse=True)
def own_temporary_folder(request, monkeypatch, tmp_path_factory) -> Iterator[None]:
    """A base of these tests' own, on a short path; runners of the application have theirs where they always have it."""
    if "app" in request.fixturenames:
        yield
        return
    tmp_path_factory.getbasetemp()  # which stays where it is
    folder = tempfile.mkdtemp(dir="/tmp")
    os.chmod(folder, 0o711)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("TMPDIR", folder)
    yield
    shutil.rmtree(folder)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")

ENTRY = TokenLogprobs(-0.5, 1, [7, 8], [-0.5, float("-inf")])
MESSAGES = [
    [TokenDelta("a", 0, 0, [1]), TokenDelta("b", 2, 5, [2, 3], [ENTRY, ENTRY])],
    [TokenDelta("a", 0, 1, [4], None, "stop", [1, 4], 16, [None, ENTRY])],
    [TokenDelta("c", 0, 0, list(range(50_000)))],
    [TokenDelta("d", 0, 0, [1]), PlainTokens(["a", "b"], [0, 2], [2, 7], [5, 6]), TokenDelta("e", 0, 0, [])],
    [PlainTokens(["d"], [0], [1], [9]), PlainTokens(["d"], [0], [2], [9]), TokenDelta("d", 0, 3, [1], None, "stop")],
    [ENGINE_LEAVES, EngineLoad(-1, 5, sampled_at=1.5)],
    [EngineLoad(3, 5)],
]


class Source:
    """Stands where the runner is: says the messages, and is gone after them if the subscriber is the one called "short"."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, int]]] = []
        self.begun: list[EngineRequest] = []
        self.given_up: list[tuple[str, tuple[str, int]]] = []
        self.detached = asyncio.Event()
        self.news: EngineLoad | None = None
        self.streams: list[SubscriberStream] = []

    def socket(self) -> TokenSocket:
        return TokenSocket(self)

    def subscribe(self, subscriber: str, resume: dict[str, int], stream: SubscriberStream) -> None:
        self.calls.append((subscriber, resume))
        self.streams.append(stream)
        for message in MESSAGES:
            stream.put(message)
            stream.flush()
        if subscriber == "short":
            stream.close()

    def unsubscribe(self, subscriber: str, stream: SubscriberStream) -> None:
        self.detached.set()

    def news_for(self, subscriber: str) -> EngineLoad | None:
        return self.news

    def begin(self, request: EngineRequest) -> None:
        self.begun.append(request)

    def give_up(self, subscriber: str, key: RequestKey) -> None:
        self.given_up.append((subscriber, key))


@pytest.fixture(params=["native", "plain"])
def writer(request, monkeypatch) -> None:
    """Each way of writing."""
    if request.param == "plain":
        monkeypatch.setattr(token_socket, "frame_writer", LoopWriter)


async def test_messages_arrive_as_they_were_sent(writer):
    source = Source()
    socket = source.socket()
    await socket.open()
    assert [message async for message in read_messages(socket.path, "short", {"a": 3})] == MESSAGES
    assert source.calls == [("short", {"a": 3})]
    await socket.close()
    assert not os.path.exists(socket.path)


async def test_who_missed_much_gets_it_though_it_is_more_than_may_wait(writer, monkeypatch):
    monkeypatch.setattr(token_socket, "_MAX_UNREAD_BYTES", 1000)
    source = Source()
    socket = source.socket()
    await socket.open()
    assert [message async for message in read_messages(socket.path, "short", {})] == MESSAGES
    await socket.close()


async def test_a_client_that_goes_away_is_detached(writer):
    source = Source()
    socket = source.socket()
    await socket.open()
    messages = read_messages(socket.path, "long", {})
    assert await anext(messages) == MESSAGES[0]
    await messages.aclose()
    await asyncio.wait_for(source.detached.wait(), 5)
    await socket.close()


async def test_an_engine_says_what_it_takes_while_it_answers(writer):
    source = Source()
    source.news = first = EngineLoad(3, 5)
    socket = source.socket()
    await socket.open()
    messages = read_messages(socket.path, "long", {})
    assert await anext(messages) == [first], "at once"
    for message in MESSAGES:
        assert await anext(messages) == message
    source.streams[0].tell(first)  # which is no news
    source.news = second = EngineLoad(2, 5)
    source.streams[0].tell(second)
    source.streams[0].flush()
    assert await asyncio.wait_for(anext(messages), 5) == [second]
    assert await asyncio.wait_for(anext(messages), 5) == [second], "a sign of life"
    source.news = None
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(messages), 4 * HEARTBEAT_S)
    await socket.close()


async def test_a_subscriber_that_does_not_read_is_cut_off_and_not_waited_for(writer, monkeypatch):
    monkeypatch.setattr(token_socket, "_MAX_UNREAD_BYTES", 4 << 20)
    source = Source()
    socket = source.socket()
    await socket.open()
    reader, client = await asyncio.open_unix_connection(socket.path)
    client.write(frame([VERSION, "long", {}]))
    await until(lambda: bool(source.streams), 10)
    message = [TokenDelta("a", 0, 0, list(range(50_000)))]
    for _ in range(200):
        source.streams[0].put(message)
        source.streams[0].flush()
    await asyncio.wait_for(source.detached.wait(), 10)
    assert 0 < len(await reader.read()) < 10 << 20
    client.close()
    await socket.close()


async def test_who_cannot_take_a_message_ends_the_connection_and_says_why():
    source = Source()
    socket = source.socket()
    await socket.open()
    taken: list[Any] = []

    def take(items: list[StreamItem]) -> None:
        taken.append(items)
        if len(taken) == 2:
            raise JournalGapError("a token is missing")

    with pytest.raises(JournalGapError, match="a token is missing"):
        await asyncio.wait_for(listen(socket.path, "long", {}, take), 10)
    assert taken == MESSAGES[:2]
    await asyncio.wait_for(source.detached.wait(), 10)
    await socket.close()


FULL = SamplingParams(
    logit_bias={3: -1.5},
    stop=("é",),
    bad_token_seqs=((1, 2),),
    grammar=Grammar("regex", "a+"),
    seed=2**63 - 1,
    logprobs=0,
)


async def test_requests_arrive_as_they_were_sent_and_only_of_who_is_attached():
    source = Source()
    senders: list[RequestSender] = []
    socket = source.socket()
    await socket.open()
    messages = read_messages(socket.path, "long", {}, lambda pid, sender: senders.append(sender))
    await anext(messages)
    long = EngineRequest("b", list(range(99_000)), SamplingParams(), 1, "long")
    requests = [EngineRequest("a", [1, 2], FULL, 0, "long", [3]), long]
    assert all(senders[0].send(request) for request in requests)
    await until(lambda: len(source.begun) == 2, 10)
    assert source.begun == requests
    assert senders[0].abort(("b", 1))
    await until(lambda: source.given_up == [("long", ("b", 1))], 10)
    assert senders[0].send(EngineRequest("c", [1], SamplingParams(), subscriber="somebody else"))
    await asyncio.wait_for(source.detached.wait(), 10)
    assert len(source.begun) == 2
    await messages.aclose()
    assert not senders[0].send(requests[0]) and not senders[0].abort(("a", 0)), "the connection is closed"
    await socket.close()


# A request that no ingress makes, which would have an answer of no tokens.
_NO_TOKENS = msgspec.msgpack.encode(
    {"request_id": "a", "prompt_token_ids": [1], "params": {"max_tokens": 0}, "subscriber": "long"}
)
WITH_NO_TOKENS = len(_NO_TOKENS).to_bytes(4, "big") + _NO_TOKENS


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\x92\x01", b"\x00\x00\x00\x01\xc1", WITH_NO_TOKENS]
)
async def test_what_is_no_request_ends_the_connection(sent):
    source = Source()
    senders: list[RequestSender] = []
    socket = source.socket()
    await socket.open()
    messages = read_messages(socket.path, "long", {}, lambda pid, sender: senders.append(sender))
    await anext(messages)
    senders[0]._connection.transport.write(sent)
    await asyncio.wait_for(source.detached.wait(), 10)
    await messages.aclose()
    assert not source.begun
    await socket.close()


@pytest.mark.parametrize(
    "large",
    [
        EngineRequest("a", [1] * 100_001, SamplingParams()),
        EngineRequest("a", [1], SamplingParams(grammar=Grammar("regex", "x" * MAX_REQUEST_BYTES))),
        EngineRequest("a", [1], SamplingParams(grammar=Grammar("regex", "\ud800"))),
        EngineRequest("a", [1], SamplingParams(), priority=2**70),
    ],
)
async def test_what_does_not_fit_goes_another_way(large):
    written: list[bytes] = []
    connection: Any = SimpleNamespace(is_open=True, send=written.append, num_unsent_bytes=0)
    small = EngineRequest("a", [1], SamplingParams())
    assert not RequestSender(connection).send(large) and not written
    assert RequestSender(connection).send(small) and written
    connection.num_unsent_bytes = MAX_REQUEST_BYTES + 1
    assert not RequestSender(connection).send(small), "the runner does not read"


async def test_only_this_user_may_connect():
    socket = Source().socket()
    await socket.open()
    folder, base = Path(socket.path).parent, Path(socket.path).parent.parent
    assert [stat.S_IMODE(path.stat().st_mode) for path in (base, folder, Path(socket.path))] == [0o700, 0o700, 0o600]
    await socket.close()
    with pytest.raises(UnusableSocketError, match="No such file"):
        await anext(read_messages(socket.path, "x", {}))


async def test_what_killed_runners_left_goes_with_the_next_one():
    killed = subprocess.run([sys.executable, "-c", _KILLED_RUNNER], stdout=subprocess.PIPE, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.exists()
    first, second = Source().socket(), Source().socket()
    await first.open()
    assert not left.exists()
    await second.open()
    assert os.path.exists(first.path), "its runner lives"
    await first.close()
    await second.close()


_KILLED_RUNNER = """
import asyncio, os, signal
from deployments.replica.token_socket import TokenSocket
async def main():
    socket = TokenSocket(None)
    await socket.open()
    print(os.path.dirname(socket.path), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""

# Connects as another user, from a folder whose door was left open, and says what it got for it.
_STRANGER = """
import os, socket, struct, sys
os.setuid(int(sys.argv[2]))
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
    body = b'["short",{}]'
    connection.sendall(struct.pack(">I", len(body)) + body)
    print(len(connection.recv(1000)))
except OSError as error:
    print(type(error).__name__)
"""


def stranger(path: str) -> str:
    command = [sys.executable, "-c", _STRANGER, path, str(NOBODY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@as_root
async def test_another_user_gets_no_token():
    source = Source()
    socket = source.socket()
    await socket.open()
    assert await asyncio.to_thread(stranger, socket.path) == "PermissionError"
    # Even where every door stands open: the kernel says who it is.
    for path, mode in ((Path(socket.path).parent.parent, 0o711), (Path(socket.path).parent, 0o777)):
        path.chmod(mode)
    try:
        os.chmod(socket.path, 0o777)
        assert await asyncio.to_thread(stranger, socket.path) in ("0", "BrokenPipeError", "ConnectionResetError")
        assert source.calls == []
    finally:
        Path(socket.path).parent.parent.chmod(0o700)
    await socket.close()


# Another user's process in the place of the runner, with tokens of its own.
_FORGER = """
import json, os, socket, struct, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
os.chown(sys.argv[1], int(sys.argv[3]), -1)
os.chmod(sys.argv[1], 0o777)
if sys.argv[2] != "0":
    os.setgroups([])
    os.setuid(int(sys.argv[2]))
    listening.listen()
print(flush=True)
while True:
    connection, _ = listening.accept()
    body = json.dumps([["a", 0, 0, [666]]]).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)
    os.write(1, connection.recv(1000) or b"nothing")
"""


@contextmanager
def forger(path: Path) -> Iterator[subprocess.Popen]:
    """Listens at ``path`` as another user, though the file is ours: only the kernel can tell."""
    command = [sys.executable, "-c", _FORGER, str(path), str(NOBODY), str(os.geteuid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


class RayRunner:
    """A runner's handle whose socket was taken over, and whose stream through Ray is not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token_socket = SimpleNamespace(remote=self._token_socket)
        self.attach = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._attach))
        self.renew = self.detach = SimpleNamespace(remote=lambda *_: None)

    async def _token_socket(self) -> tuple[str, str]:
        return "here", str(self.path)

    async def _attach(self, subscriber: str, resume: dict, leased: bool):
        assert leased
        for message in MESSAGES:
            future = asyncio.get_running_loop().create_future()
            future.set_result(message)
            yield future
        await asyncio.Event().wait()


async def tokens_of(runner: RayRunner, monkeypatch) -> list[TokenDelta]:
    got: list[TokenDelta] = []
    whole, lost = asyncio.Event(), asyncio.get_running_loop().create_future()

    def deliver(stream, deltas) -> None:
        got.extend(deltas)
        if len(got) >= sum(map(len, MESSAGES)):
            whole.set()

    monkeypatch.setattr(
        "deployments.routing.token_streams.ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here")
    )
    streams = TokenStreams("me", EngineChoices(), deliver, dict, lambda stream, why: lost.set_result(why), 60.0)
    streams.attach(AttachRequired("engine-1", runner, "f"))
    waiting = asyncio.ensure_future(whole.wait())
    await asyncio.wait((waiting, lost), timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert not lost.done(), lost.result()
    await streams.close()
    return got


@pytest.mark.parametrize("said", [b"", frame(VERSION + 1) + frame([[], [[1, 1]]]), frame([[], [[1, 1]]])])
async def test_a_runner_of_other_code_is_not_read_and_tokens_come_through_ray(said, tmp_path, monkeypatch, caplog):
    """It may be of the time before there were versions, and close at what it does not know, or send what it always sent."""
    hellos: list[bytes] = []

    async def serve(reader, writer) -> None:
        hellos.append(await reader.read(1000))
        writer.write(said)
        writer.close()

    folder = tmp_path / "t"
    folder.mkdir(mode=0o700)
    server = await asyncio.start_unix_server(serve, folder / "s")
    assert await tokens_of(RayRunner(folder / "s"), monkeypatch) == [d for message in MESSAGES for d in message]
    assert len(hellos) == 1 and f"{VERSION}" in caplog.text
    server.close()


# Takes the connection, and dies before it has said its version.
_DIES_BEFORE_ITS_VERSION = """
import os, signal, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print(flush=True)
listening.accept()[0].recv(1000)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_runner_that_dies_before_it_says_its_version_is_not_of_other_code(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-c", _DIES_BEFORE_ITS_VERSION, str(folder / "s")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ConnectionError, match="the runner ended"):
            await anext(read_messages(str(folder / "s"), "x", {}))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("hello", [[VERSION + 1, "short", {}], ["short", {}]])
async def test_an_ingress_of_other_code_gets_the_version_at_most(hello):
    source = Source()
    socket = source.socket()
    await socket.open()
    reader, writer = await asyncio.open_unix_connection(socket.path)
    writer.write(frame(hello))
    assert await reader.read() == (frame(VERSION) if len(hello) == 3 else b"")
    assert source.calls == []
    writer.close()
    await socket.close()


@as_root
async def test_a_forged_listener_is_told_nothing_and_tokens_come_through_ray(tmp_path, monkeypatch):
    folder = tmp_path / "t"
    folder.mkdir(mode=0o700)
    with forger(folder / "s") as process:
        assert await tokens_of(RayRunner(folder / "s"), monkeypatch) == [d for message in MESSAGES for d in message]
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() in (b"", b"nothing"), "which requests there are is nobody else's business"


@pytest.mark.parametrize("fault", ["open", "link", "missing"])
async def test_a_folder_that_is_not_private_is_not_used_and_tokens_come_through_ray(fault, tmp_path, monkeypatch):
    folder = tmp_path / "t"
    if fault != "missing":
        (tmp_path / "real").mkdir(mode=0o700)
        os.rename(tmp_path / "real", folder) if fault == "open" else folder.symlink_to(tmp_path / "real")
    if fault == "open":
        folder.chmod(0o777)
    assert await tokens_of(RayRunner(folder / "s"), monkeypatch) == [d for message in MESSAGES for d in message]


@as_root
async def test_a_socket_in_another_users_folder_is_not_used_whoever_listens():
    socket = Source().socket()
    await socket.open()
    os.chown(os.path.dirname(socket.path), NOBODY, -1)
    with pytest.raises(UnusableSocketError, match=f"belongs to another user .uid {NOBODY}"):
        await anext(read_messages(socket.path, "short", {}))
    await socket.close()


def test_a_runner_keeps_its_sockets_in_this_users_own_folder(app: App):
    """And not in that of Ray's session, which every user of the machine may write to."""
    inodes = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{app.stats()['pid']}/fd") if entry.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    mine = [row[7] for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in inodes]
    listening = [path for path in mine if path.startswith(str(private_base() / "t-"))]
    assert {Path(path).name for path in listening} == {"s", "c"}
    # CUDA's own has a name that is no file.
    assert [
        path for path in mine if "/sockets/" not in path and not path.startswith("@cuda") and path not in listening
    ] == []
