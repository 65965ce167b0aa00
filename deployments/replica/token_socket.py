"""The runner's side of a token socket (``token_messages``).

A Ray stream costs both processes about a millisecond a message, which matters where they share the cores that compute;
a socket costs a twentieth of that. What travels is the same: the items of ``RunnerActor.attach``. Tokens are written where they
are said, on the engine's thread, and reach the socket without the interpreter (``SocketStream``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from actors.delta_stream import HEARTBEAT_S, SubscriberStream, is_news
from cluster.errors import BiremeError, InvalidRequestError
from cluster.outputs import EngineLoad, StreamItem
from cluster.process.silence_clock import SilenceClock
from cluster.process.unix_sockets import has_listener
from cluster.request import EngineRequest, RequestKey
from deployments.native.frame_writer import Connection, Writer, frame_writer
from deployments.replica.frames import MAX_REQUEST_BYTES, frame, is_ours, peer_of, read_frame, write_frame
from deployments.replica.token_messages import HELLO, REQUEST, VERSION, to_wire
from deployments.start.run_files.private_folder import private_base

# A folder without a socket is about to get it, or its maker was killed in between.
_YOUNG_S = 60.0
# What waits for a subscriber that does not read, beside what it missed before; then its connection ends, and it asks again for
# what it lacks.
_MAX_UNREAD_BYTES = 64 << 20
# A socket's path has at most 107 characters, 22 of them below the base.
_LONGEST_BASE = 85


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
        self._unread = self._connection.send(frame(to_wire(items)))
        if not 0 <= self._unread <= self._most_unread:
            self._connection.close(at_once=True)
            self._loop.call_soon_threadsafe(self.ended.set)

    def flush(self) -> None:
        self._connection.flush()

    def catches_up(self) -> None:
        """What was missed has been put."""
        self._most_unread = self._unread + _MAX_UNREAD_BYTES

    def tell(self, load: EngineLoad) -> None:
        if is_news(self._told, load):
            self._told = load
            self.put([load])

    def close(self) -> None:
        self._timer.cancel()
        self._connection.close()
        self.ended.set()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT_S, self._beat)
        now = self._news()
        if now is not None:
            self._told = now
            self.put([now])
            self.flush()


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
            version, subscriber, resume = HELLO.decode(await read_frame(reader))
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            msgspec.DecodeError,
        ):  # somebody who only looked whether this process lives, or an ingress of other code
            writer.close()
            return
        if version != VERSION:
            write_frame(writer, VERSION)
            writer.close()
            return
        assert self._writer is not None
        connection = self._writer.open(writer.transport)
        connection.send(frame(VERSION))
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
                request = REQUEST.decode(await read_frame(reader, MAX_REQUEST_BYTES))
                if isinstance(request, tuple):
                    self._runner.give_up(subscriber, request)
                elif request.subscriber == subscriber:
                    self._runner.begin(request)
                else:
                    return


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
    try:
        return has_listener(folder / "s")
    except FileNotFoundError:  # not yet, or no more
        return time.time() - folder.stat().st_mtime < _YOUNG_S
