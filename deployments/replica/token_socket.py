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

from actors.delta_stream import HEARTBEAT_S, SubscriberStream, is_news
from cluster.errors import BiremeError, InvalidRequestError
from cluster.outputs import EngineLoad, StreamItem
from cluster.process.silence_clock import SilenceClock
from cluster.process.unix_sockets import has_listener
from cluster.request import EngineRequest, RequestKey
from deployments.native.frame_writer import Connection, Writer, frame_writer
from deployments.replica.frames import MAX_REQUEST_BYTES, FrameProtocol, frame
from deployments.replica.token_messages import HELLO, REQUEST, VERSION, to_wire
from deployments.start.run_files.private_folder import private_base

# A folder without a socket is about to get it, or its maker was killed in between.
_YOUNG_S = 60.0
# What waits for a subscriber that does not read, beside what it missed before; then its connection ends, and it asks again for
# what it lacks.
_MAX_UNREAD_BYTES = 64 << 20
# It says which tokens each of the subscriber's requests lacks.
_LONGEST_HELLO = 1 << 32
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
        ended: called on the loop, also more than once, when nothing more can be said.
    """

    def __init__(
        self, connection: Connection, news: Callable[[], EngineLoad | None], ended: Callable[[], None]
    ) -> None:
        self.lease: SilenceClock | None = None
        self._ended = ended
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
            self._loop.call_soon_threadsafe(self._ended)

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
        self._loop.call_soon(self._ended)

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
        self.path = ""
        """Of the socket; empty until it is open."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen; what killed processes left behind is removed first."""
        writer = await asyncio.to_thread(frame_writer)
        base = _socket_base()
        _remove_leftovers(base)
        # As short as can be: a path has at most 107 characters.
        self.path = os.path.join(tempfile.mkdtemp(prefix=_prefix(), dir=base), "s")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Subscription(self._runner, writer).protocol, self.path)
        os.chmod(self.path, 0o600)

    async def close(self) -> None:
        """Stop listening and remove the socket; open connections end with their streams."""
        if self._server is not None:
            self._server.close()
        if self.path:
            shutil.rmtree(os.path.dirname(self.path), ignore_errors=True)


class _Subscription:
    """One connection of a subscriber's. An idle stream learns here of a client that is gone."""

    def __init__(self, runner: Subscribers, writer: Writer) -> None:
        self._runner = runner
        self._writer = writer
        self._subscriber = ""
        self._stream: SocketStream | None = None
        self._has_ended = False
        self.protocol = FrameProtocol(self._got, lambda connection: self._end(), _LONGEST_HELLO)

    def _got(self, connection: FrameProtocol, frame: bytes) -> None:
        if self._has_ended:
            return
        if self._stream is None:
            self._greet(connection, frame)
            return
        try:
            request = REQUEST.decode(frame)
        except InvalidRequestError:  # no client of this kind sends it
            self._end()
            return
        if isinstance(request, tuple):
            self._runner.give_up(self._subscriber, request)
        elif request.subscriber == self._subscriber:
            self._runner.begin(request)
        else:
            self._end()

    def _greet(self, connection: FrameProtocol, hello: bytes) -> None:
        # What is no hello ends the connection: somebody only looked whether this process lives, or is an ingress of other code.
        version, self._subscriber, resume = HELLO.decode(hello)
        if version != VERSION:
            connection.send(VERSION)
            self._end()
            return
        connection.longest = MAX_REQUEST_BYTES
        assert connection.transport is not None
        tokens = self._writer.open(connection.transport)
        tokens.send(frame(VERSION))
        tokens.flush()
        self._stream = stream = SocketStream(tokens, lambda: self._runner.news_for(self._subscriber), self._end)
        self._runner.subscribe(self._subscriber, resume, stream)
        stream.catches_up()

    def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        if self._stream is not None:
            self._stream.close()
            self._runner.unsubscribe(self._subscriber, self._stream)
        self.protocol.close()


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
