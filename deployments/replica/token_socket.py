"""Token messages over a Unix socket, for an ingress on the runner's own machine, and requests the other way.

A Ray stream costs both processes about a millisecond a message, which matters where they share the cores that compute;
a socket costs a twentieth of that. What travels is the same: the items of ``RunnerActor.attach``.

Wire: the client sends one frame ``[subscriber, resume]``, then a request that is to begin before its call as a frame of its
own, and ``[request id, attempt]`` of one that is to end; the server sends one frame a message, ``[deltas, load]``, with deltas
and load as arrays. A frame is a length (4 bytes, big endian) and MessagePack.

Each side talks to processes of its own user alone, whom the kernel names: whoever else gets hold of a path gains nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import struct
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from cluster.errors import BiremeError, InvalidRequestError
from cluster.outputs import EngineLoad, StreamItem, TokenDelta
from cluster.request import EngineRequest, RequestKey
from deployments.start.run_files.private_folder import not_private, private_base

# A longer prompt comes with the call alone: what it takes to compute hides the way.
MAX_REQUEST_BYTES = 1 << 20
_MAX_REQUEST_TOKENS = 100_000

Attach = Callable[[str, dict[str, int]], AsyncIterator[list[StreamItem]]]
_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()
_HELLO = msgspec.msgpack.Decoder(tuple[str, dict[str, int]])
_REQUEST = msgspec.msgpack.Decoder(EngineRequest | tuple[str, int])
_MESSAGE = msgspec.msgpack.Decoder(tuple[list[TokenDelta], list[EngineLoad]])
_CREDENTIALS = struct.Struct("iII")  # process, user, group
# A folder without a socket is about to get it, or its maker was killed in between.
_YOUNG_S = 60.0
# A socket's path has at most 107 characters, 22 of them below the base.
_LONGEST_BASE = 85


class UnusableSocketError(Exception):
    """The socket cannot be reached from here, or another user's process listens on it. The engine may be well."""


class RequestSender:
    """The ingress's side of an open connection, towards the runner."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, request: EngineRequest) -> bool:
        """False if it cannot go this way: it is too large, the runner does not read, or the connection is gone."""
        waiting = self._writer.transport.get_write_buffer_size()
        num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
        if self._writer.is_closing() or waiting > MAX_REQUEST_BYTES or num_tokens > _MAX_REQUEST_TOKENS:
            return False
        try:
            body = _ENCODER.encode(request)
        except (
            TypeError,
            ValueError,
            OverflowError,
        ):  # pickle takes more: half a surrogate pair, an integer of any size
            return False
        if len(body) > MAX_REQUEST_BYTES:
            return False
        self._writer.write(_LENGTH.pack(len(body)) + body)
        return True

    def abort(self, key: RequestKey) -> bool:
        """Have a request end; the runner reads it after all that was sent before. False if it cannot be told this way."""
        if self._writer.is_closing():
            return False
        _write_frame(self._writer, key)
        return True


class TokenSocket:
    """The runner's side. The socket lies in a folder that only this user may enter.

    Args:
        attach: yields the messages of a subscriber.
        begin: gets the requests of subscribers that are attached.
        give_up: gets a subscriber, and the key of a request which it does not want any more.

    Attributes:
        path: of the socket; empty until it is open.
    """

    def __init__(
        self, attach: Attach, begin: Callable[[EngineRequest], None], give_up: Callable[[str, RequestKey], None]
    ) -> None:
        self._attach = attach
        self._begin = begin
        self._give_up = give_up
        self.path = ""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen; what killed processes left behind is removed first."""
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
        if not _is_ours(_peer(writer)[1]):
            writer.close()
            return
        try:
            subscriber, resume = _HELLO.decode(await _read_frame(reader))
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            msgspec.DecodeError,
        ):  # somebody who only looked whether this process lives
            writer.close()
            return
        messages = self._attach(subscriber, resume)
        # It begins before the first request is read, which is one of a subscriber that is attached then.
        message = asyncio.ensure_future(anext(messages))
        # An idle stream learns here of a client that is gone.
        gone = asyncio.ensure_future(self._read_requests(reader, subscriber))
        try:
            while True:
                await asyncio.wait((message, gone), return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    # Cancelled inside its generator, the stream ends there and the subscriber is detached.
                    message.cancel()
                    await asyncio.wait((message,))
                    break
                items = message.result()
                loads = [item for item in items if isinstance(item, EngineLoad)]
                deltas = [item for item in items if isinstance(item, TokenDelta)] if loads else items
                _write_frame(writer, (deltas, loads))
                await writer.drain()
                message = asyncio.ensure_future(anext(messages))
        except (StopAsyncIteration, ConnectionError):
            pass
        finally:
            gone.cancel()
            writer.close()

    async def _read_requests(self, reader: asyncio.StreamReader, subscriber: str) -> None:
        """Begin what the client asks for; returns when it is gone or sends what no client of this kind sends."""
        with contextlib.suppress(
            asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError, InvalidRequestError
        ):
            while True:
                request = _REQUEST.decode(await _read_frame(reader, MAX_REQUEST_BYTES))
                if isinstance(request, tuple):
                    self._give_up(subscriber, request)
                elif request.subscriber == subscriber:
                    self._begin(request)
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
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(folder / "s"))
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:  # not yet, or no more
            return time.time() - folder.stat().st_mtime < _YOUNG_S
    return True


async def read_messages(
    path: str, subscriber: str, resume: dict[str, int], reached: Callable[[int, RequestSender], None] | None = None
) -> AsyncIterator[list[StreamItem]]:
    """The ingress's side: attach and yield messages until the runner closes the stream.

    Args:
        reached: called with the id of the process that listens, as this process sees it, and what requests are sent with.

    Raises:
        UnusableSocketError: there is none that this user's process made; nothing was sent.
        OSError: nobody listens any more, or the connection broke.
    """
    if (fault := not_private(Path(path).parent)) is not None:
        raise UnusableSocketError(fault)
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except (FileNotFoundError, PermissionError) as error:
        raise UnusableSocketError(f"{path}: {error.strerror}") from None
    try:
        pid, user = _peer(writer)
        if not _is_ours(user):
            raise UnusableSocketError(f"{path} is served by another user (uid {user})")
        _write_frame(writer, [subscriber, resume])
        if reached is not None and pid:
            reached(pid, RequestSender(writer))
        while True:
            try:
                frame = await _read_frame(reader)
            except asyncio.IncompleteReadError:
                return
            deltas, loads = _MESSAGE.decode(frame)
            yield [*deltas, *loads]
    finally:
        writer.close()


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int | None]:
    """Ids of the process at the other end of a Unix socket and of its user: 0 and None where the kernel does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, None
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    pid, user, _group = _CREDENTIALS.unpack(told)
    return pid, user


def _is_ours(user: int | None) -> bool:
    """Whether ``user`` is this process's. Where the kernel does not tell, the folder that only this user may enter has to do."""
    return user is None or user == os.geteuid()


def _write_frame(writer: asyncio.StreamWriter, value: Any) -> None:
    body = _ENCODER.encode(value)
    writer.write(_LENGTH.pack(len(body)) + body)


async def _read_frame(reader: asyncio.StreamReader, longest: int = 1 << 32) -> bytes:
    """The next frame; ConnectionError if it is longer than it may be."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > longest:
        raise ConnectionError(f"a frame of {length} bytes")
    return await reader.readexactly(length)
