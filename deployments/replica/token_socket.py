"""Token messages over a Unix socket, for an ingress on the runner's own machine, and requests the other way.

A Ray stream costs both processes about a millisecond a message, which matters where they share the cores that compute;
a socket costs a twentieth of that. What travels is the same: the items of ``RunnerActor.attach``. Tokens are written where they
are said, on the engine's thread, and reach the socket without the interpreter (``SocketStream``).

Wire: the client sends one frame ``[version, subscriber, resume]``, then a request that is to begin before its call as a frame of
its own, and ``[request id, attempt]`` of one that is to end; the server sends its version, then one frame a message,
``[steps, load]``. A step is ``[plain tokens, deltas]``, all of them arrays. While code is changed on a machine, both sides may be
of different code: neither reads a frame of another version, and the tokens come through Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from actors.delta_stream import HEARTBEAT_S, SubscriberStream, is_news
from cluster.errors import BiremeError, InvalidRequestError
from cluster.outputs import EngineLoad, PlainTokens, StreamItem, TokenDelta
from cluster.process.process_liveness import has_ended
from cluster.process.silence_clock import SilenceClock
from cluster.request import EngineRequest, RequestKey
from deployments.native.frame_writer import Connection, Writer, frame_writer
from deployments.replica.frame_version import frame_version
from deployments.replica.frames import (
    MAX_REQUEST_BYTES,
    FrameProtocol,
    UnusableSocketError,
    encode_request,
    frame,
    is_ours,
    peer_of,
    read_frame,
    write_frame,
)
from deployments.start.run_files.private_folder import not_private, private_base

_HELLO = msgspec.msgpack.Decoder(tuple[int, str, dict[str, int]])
_Request: TypeAlias = EngineRequest | tuple[str, int]
_REQUEST = msgspec.msgpack.Decoder(_Request)
_Step: TypeAlias = tuple[PlainTokens, list[TokenDelta]]
_Message: TypeAlias = tuple[list[_Step], list[EngineLoad]]
_MESSAGE = msgspec.msgpack.Decoder(_Message)
_VERSION = frame_version(_Request, _Message)
_TOLD_VERSION = msgspec.msgpack.Decoder(int)
_NO_TOKENS = PlainTokens.none()
# A folder without a socket is about to get it, or its maker was killed in between.
_YOUNG_S = 60.0
_ENDING_S, _ENDING_LOOKS = 0.2, 10
_LONGEST_MESSAGE = 1 << 32
# What waits for a subscriber that does not read, beside what it missed before; then its connection ends, and it asks again for
# what it lacks.
_MAX_UNREAD_BYTES = 64 << 20
# A socket's path has at most 107 characters, 22 of them below the base.
_LONGEST_BASE = 85


class RequestSender:
    """The ingress's side of an open connection, towards the runner."""

    def __init__(self, connection: FrameProtocol) -> None:
        self._connection = connection

    def send(self, request: EngineRequest) -> bool:
        """False if it cannot go this way: it is too large, the runner does not read, or the connection is gone."""
        if not self._connection.is_open or self._connection.num_unsent_bytes > MAX_REQUEST_BYTES:
            return False
        body = encode_request(request)
        if body is None:
            return False
        self._connection.send(body)
        return True

    def abort(self, key: RequestKey) -> bool:
        """Have a request end; the runner reads it after all that was sent before. False if it cannot be told this way."""
        if not self._connection.is_open:
            return False
        self._connection.send(key)
        return True


class Subscribers(Protocol):
    """The runner, as the socket knows it: ``RunnerActor``."""

    def subscribe(self, subscriber: str, resume: dict[str, int], stream: SubscriberStream) -> None: ...

    def unsubscribe(self, subscriber: str, stream: SubscriberStream) -> None: ...

    def news_for(self, subscriber: str) -> EngineLoad | None: ...

    def begin(self, request: EngineRequest) -> None: ...

    def give_up(self, subscriber: str, key: RequestKey) -> None: ...


class SocketStream:
    """A ``SubscriberStream`` over a connection. Made on the actor's loop.

    Args:
        connection: this stream's own.
        news: what the engine takes now; None while it does not answer.

    Attributes:
        ended: set once nothing more can be said.
    """

    def __init__(self, connection: Connection, news: Callable[[], EngineLoad | None]) -> None:
        self.lease: SilenceClock | None = None
        self.ended = asyncio.Event()
        self._connection = connection
        self._news = news
        self._told: EngineLoad | None = None
        self._unread = 0
        self._most_unread = float("inf")
        self._loop = asyncio.get_running_loop()
        self._beat()

    def put(self, items: Sequence[StreamItem]) -> None:
        if not items:
            return
        self._unread = self._connection.send(frame(_message(items)))
        if not 0 <= self._unread <= self._most_unread:
            self._connection.close(at_once=True)
            self._loop.call_soon_threadsafe(self.ended.set)

    def flush(self) -> None:
        self._connection.flush()

    def catches_up(self) -> None:
        """What was missed has been put."""
        self._most_unread = self._unread + _MAX_UNREAD_BYTES

    def tell(self) -> None:
        self._tell(beats=False)

    def close(self) -> None:
        self._timer.cancel()
        self._connection.close()
        self.ended.set()

    def _tell(self, beats: bool) -> None:
        now = self._news()
        if now is not None and (beats or is_news(self._told, now)):
            self._told = now
            self.put([now])
            self.flush()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT_S, self._beat)
        self._tell(beats=True)


class TokenSocket:
    """The runner's side. The socket lies in a folder that only this user may enter."""

    def __init__(self, runner: Subscribers) -> None:
        self._runner = runner
        self._writer: Writer | None = None
        self.path = ""
        """Of the socket; empty until it is open."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen; what killed processes left behind is removed first."""
        self._writer = await asyncio.to_thread(frame_writer)
        base = _socket_base()
        _remove_leftovers(base)
        # As short as can be: a path has at most 107 characters.
        self.path = os.path.join(tempfile.mkdtemp(prefix=_prefix(), dir=base), "s")
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        os.chmod(self.path, 0o600)

    async def close(self) -> None:
        """Stop listening and remove the socket; open connections end with their streams."""
        if self._server is not None:
            self._server.close()
        if self.path:
            shutil.rmtree(os.path.dirname(self.path), ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not is_ours(peer_of(writer)[1]):
            writer.close()
            return
        try:
            version, subscriber, resume = _HELLO.decode(await read_frame(reader))
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            msgspec.DecodeError,
        ):  # somebody who only looked whether this process lives, or an ingress of other code
            writer.close()
            return
        if version != _VERSION:
            write_frame(writer, _VERSION)
            writer.close()
            return
        assert self._writer is not None
        connection = self._writer.open(writer.transport)
        connection.send(frame(_VERSION))
        connection.flush()
        stream = SocketStream(connection, lambda: self._runner.news_for(subscriber))
        loop = asyncio.get_running_loop()
        ending = loop.create_task(stream.ended.wait())
        # An idle stream learns here of a client that is gone. It reads the first request, which is one of a subscriber that is
        # attached then, when this one waits.
        reading = loop.create_task(self._read_requests(reader, subscriber))
        try:
            self._runner.subscribe(subscriber, resume, stream)
            stream.catches_up()
            await asyncio.wait((ending, reading), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            reading.cancel()
            stream.close()
            self._runner.unsubscribe(subscriber, stream)
            writer.close()

    async def _read_requests(self, reader: asyncio.StreamReader, subscriber: str) -> None:
        """Begin what the client asks for; returns when it is gone or sends what no client of this kind sends."""
        with contextlib.suppress(
            asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError, InvalidRequestError
        ):
            while True:
                request = _REQUEST.decode(await read_frame(reader, MAX_REQUEST_BYTES))
                if isinstance(request, tuple):
                    self._runner.give_up(subscriber, request)
                elif request.subscriber == subscriber:
                    self._runner.begin(request)
                else:
                    return


def _message(items: Sequence[StreamItem]) -> _Message:
    """As it travels; ``_items`` reads it."""
    steps: list[_Step] = []
    loads: list[EngineLoad] = []
    for item in items:
        if isinstance(item, PlainTokens):
            steps.append((item, []))
        elif isinstance(item, EngineLoad):
            loads.append(item)
        else:
            if not steps:
                steps.append((_NO_TOKENS, []))
            steps[-1][1].append(item)
    return steps, loads


def _items(message: _Message) -> list[StreamItem]:
    steps, loads = message
    items: list[StreamItem] = []
    for plain, deltas in steps:
        if plain.token_ids:
            items.append(plain)
        items += deltas
    return [*items, *loads]


def _socket_base() -> Path | None:
    """Where folders of sockets are made: this user's, or where another user has taken its name, that of temporary files."""
    try:
        return private_base(longest=_LONGEST_BASE)
    except BiremeError:
        return None


def _prefix() -> str:
    """What names of folders begin with: nobody listens here on a socket of another machine, though the disk may be shared."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        machine = platform.node()
    return f"t-{zlib.crc32(machine.encode()):08x}-"


def _remove_leftovers(base: Path | None) -> None:
    """Remove folders of sockets on which nobody listens any more: their runners were killed."""
    for folder in base.glob(f"{_prefix()}*") if base is not None else ():
        with contextlib.suppress(OSError):
            if not _is_in_use(folder):
                shutil.rmtree(folder)


def _is_in_use(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(folder / "s"))
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:  # not yet, or no more
            return time.time() - folder.stat().st_mtime < _YOUNG_S
    return True


async def _ends(pid: int) -> bool:
    """Whether a process that closed its connection has ended, or does so now: its files are closed a little before that shows."""
    for _ in range(_ENDING_LOOKS if pid else 0):
        if has_ended(pid):
            return True
        await asyncio.sleep(_ENDING_S / _ENDING_LOOKS)
    return False


class _Listening:
    """An ingress's connection: the runner's version, then messages."""

    def __init__(self, path: str, deliver: Callable[[list[StreamItem]], None]) -> None:
        self._path = path
        self._deliver = deliver
        self.version: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        """None if the connection ended before, or what came is none."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what ``deliver`` raised."""

    def got(self, connection: FrameProtocol, frame: bytes) -> None:
        if not self.version.done():
            try:
                self.version.set_result(_TOLD_VERSION.decode(frame))
            except msgspec.DecodeError:
                self.version.set_result(None)
            return
        if self.ended.done() or self.version.result() != _VERSION:
            return
        try:
            self._deliver(_items(_MESSAGE.decode(frame)))
        except Exception as error:
            self.ended.set_exception(error)
            connection.close()

    def lost(self, connection: FrameProtocol) -> None:
        if not self.version.done():
            self.version.set_result(None)
        if not self.ended.done():
            self.ended.set_result(None)


async def _check_version(path: str, listening: _Listening, pid: int) -> None:
    """Raise UnusableSocketError unless the runner says that it speaks this version, or ConnectionError where it has ended."""
    version = await listening.version
    if version is None:
        # Code without versions closes at the first frame.
        if listening.ended.done() and await _ends(pid):
            raise ConnectionError(f"{path}: the runner ended before it said its version")
        raise UnusableSocketError(f"{path}: the runner's code does not know frames of version {_VERSION}")
    if version != _VERSION:
        raise UnusableSocketError(f"{path}: the runner speaks version {version} of the frames, this process {_VERSION}")


async def listen(
    path: str,
    subscriber: str,
    resume: dict[str, int],
    deliver: Callable[[list[StreamItem]], None],
    reached: Callable[[int, RequestSender], None] | None = None,
) -> None:
    """The ingress's side: attach, and return when the runner has closed the stream.

    Args:
        deliver: called with each message as it comes; what it raises ends the connection and is raised here.
        reached: called with the id of the process that listens, as this process sees it, and what requests are sent with.

    Raises:
        UnusableSocketError: there is none that this user's process made, and nothing was sent; or it is of other code.
        OSError: nobody listens any more, or the connection broke.
    """
    if (fault := not_private(Path(path).parent)) is not None:
        raise UnusableSocketError(fault)
    listening = _Listening(path, deliver)
    try:
        _, connection = await asyncio.get_running_loop().create_unix_connection(
            lambda: FrameProtocol(listening.got, listening.lost, _LONGEST_MESSAGE), path
        )
    except (FileNotFoundError, PermissionError) as error:
        raise UnusableSocketError(f"{path}: {error.strerror}") from None
    try:
        pid, user = connection.peer
        if not is_ours(user):
            raise UnusableSocketError(f"{path} is served by another user (uid {user})")
        connection.send([_VERSION, subscriber, resume])
        await _check_version(path, listening, pid)
        if reached is not None and pid:
            reached(pid, RequestSender(connection))
        await listening.ended
    finally:
        connection.close()
        if listening.ended.done() and not listening.ended.cancelled():
            listening.ended.exception()  # was told, or is nobody's any more
