"""Frames over Unix sockets between processes of one user: a length (4 bytes, big endian) and MessagePack.

Each side talks to processes of its own user alone, whom the kernel names: whoever else gets hold of a path gains nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from cluster.request import EngineRequest

# A request with a longer prompt goes another way: what it takes to compute hides what that costs.
MAX_REQUEST_BYTES = 1 << 20
_MAX_REQUEST_TOKENS = 100_000

LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()
_CREDENTIALS = struct.Struct("iII")  # process, user, group


class UnusableSocketError(Exception):
    """The socket cannot be reached from here, or who listens on it is another user's process or of other code. The engine may be
    well."""


class FrameProtocol(asyncio.Protocol):
    """A connection whose frames are handed on as they come, without a task of its own.

    Args:
        got: called with each frame; what it raises ends the connection.
        lost: called once when the connection has ended.
        longest: in bytes; a longer frame ends the connection.

    Attributes:
        longest: may be changed from one frame to the next.
        peer: as ``peer_of``, once connected.
        transport: of the connection, once connected.
    """

    def __init__(
        self, got: Callable[[FrameProtocol, bytes], None], lost: Callable[[FrameProtocol], None], longest: int
    ) -> None:
        self._got = got
        self._lost = lost
        self.longest = longest
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.peer: tuple[int, int | None] = 0, None

    @property
    def num_unsent_bytes(self) -> int:
        """That wait for the other side to read."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def send(self, value: Any) -> None:
        """One frame; nothing where the connection has ended."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame(value))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self.peer = peer_of(transport)
        if not is_ours(self.peer[1]):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at, end = 0, len(self._buffer)
        try:
            while end - at >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._buffer, at)
                if length > self.longest:
                    raise ConnectionError(f"a frame of {length} bytes")
                if end - at - LENGTH.size < length:
                    break
                at += LENGTH.size + length
                self._got(self, bytes(memoryview(self._buffer)[at - length : at]))
        except (ConnectionError, msgspec.DecodeError):
            self.close()
        del self._buffer[:at]


def frame(value: Any) -> bytes:
    """``value`` as it travels."""
    body = _ENCODER.encode(value)
    return LENGTH.pack(len(body)) + body


def encode_request(request: EngineRequest) -> msgspec.Raw | None:
    """The request as part of a frame, or all of one; None if it cannot go this way."""
    if len(request.prompt_token_ids) + len(request.output_token_ids) > _MAX_REQUEST_TOKENS:
        return None
    try:
        body = _ENCODER.encode(request)
    except (TypeError, ValueError, OverflowError):  # pickle takes more: half a surrogate pair, an integer of any size
        return None
    return msgspec.Raw(body) if len(body) <= MAX_REQUEST_BYTES else None


def peer_of(transport: asyncio.BaseTransport) -> tuple[int, int | None]:
    """Ids of the process at the other end of a Unix socket and of its user: 0 and None where the kernel does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, None
    told = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    pid, user, _group = _CREDENTIALS.unpack(told)
    return pid, user


def is_ours(user: int | None) -> bool:
    """Whether ``user`` is this process's. Where the kernel does not tell, the folder that only this user may enter has to do."""
    return user is None or user == os.geteuid()
