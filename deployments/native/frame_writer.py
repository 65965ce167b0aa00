"""Bytes to connections from any thread, which never waits for a socket.

``FrameWriter`` has a thread that takes no interpreter lock (``frame_writer.cc``); ``LoopWriter``, its plain twin, has the
connection's event loop write, and serves where nothing can be compiled.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from gpu_ops.build import OpBuildError, build_library

logger = logging.getLogger("bireme.runner")

SOURCE = Path(__file__).with_name("frame_writer.cc")


class Connection(Protocol):
    """Where bytes go in the order in which they are sent. Any thread may call it."""

    def send(self, data: bytes) -> int:
        """Have ``data`` written behind all that was sent before, after the next ``flush`` of any connection of its writer.
        Returns how many bytes are not written yet; -1 if the connection was closed or the other side has gone."""

    def flush(self) -> None:
        """Nothing more is sent now."""

    def close(self, at_once: bool = False) -> None:
        """End the connection for both sides once everything is written, or ``at_once``."""


class Writer(Protocol):
    def open(self, transport: asyncio.BaseTransport) -> Connection:
        """Write to ``transport`` from now on, which nobody else may. What was sent is written though its owner closes it, after
        this connection's own end."""


def frame_writer() -> Writer:
    """The native one where there is a compiler, or was when the cache was filled."""
    try:
        return FrameWriter()
    except OpBuildError as error:
        logger.warning("tokens are written by the event loop, which is slower: %s", error)
        return LoopWriter()


class FrameWriter:
    """One thread for all connections of a process, as long as that runs.

    Raises:
        OpBuildError: it cannot be compiled here.
    """

    def __init__(self) -> None:
        self._library, self._writer = _library()

    def open(self, transport: asyncio.BaseTransport) -> Connection:
        """As ``Writer``."""
        return _NativeConnection(self._library, self._writer, os.dup(transport.get_extra_info("socket").fileno()))


class _NativeConnection:
    def __init__(self, library: ctypes.PyDLL, writer: int, fd: int) -> None:
        self._library, self._writer = library, writer
        self._send, self._flush = library.bireme_writer_send, library.bireme_writer_flush
        self._id = library.bireme_writer_open(writer, fd)

    def send(self, data: bytes) -> int:
        return self._send(self._writer, self._id, data, len(data))

    def flush(self) -> None:
        self._flush(self._writer)

    def close(self, at_once: bool = False) -> None:
        self._library.bireme_writer_close(self._writer, self._id, at_once)


class LoopWriter:
    """Connections that their own event loop writes to."""

    def open(self, transport: asyncio.BaseTransport) -> Connection:
        """As ``Writer``; on that loop."""
        return _LoopConnection(cast(asyncio.WriteTransport, transport))  # uvloop's is none by class


class _LoopConnection:
    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._unsent: deque[bytes] = deque()
        self._num_unsent = 0
        self._lock = threading.Lock()
        self._closed = False

    def send(self, data: bytes) -> int:
        if self._closed or self._transport.is_closing():
            return -1
        with self._lock:
            self._unsent.append(data)
            self._num_unsent += len(data)
        return self._num_unsent + self._transport.get_write_buffer_size()

    def flush(self) -> None:
        self._on_loop(self._write)

    def _write(self) -> None:
        with self._lock:
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._num_unsent = 0
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def close(self, at_once: bool = False) -> None:
        self._closed = True
        self._on_loop(self._transport.abort if at_once else self._end)

    def _end(self) -> None:
        self._write()
        self._transport.close()

    def _on_loop(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
        else:
            self._loop.call_soon_threadsafe(function)


@functools.cache
def _library() -> tuple[ctypes.PyDLL, int]:
    """The library, and this process's writer."""
    # PyDLL keeps the interpreter lock, which is sooner than to give it back and take it again.
    library = ctypes.PyDLL(str(build_library(SOURCE)))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.bireme_writer_new.restype, library.bireme_writer_new.argtypes = pointer, []
    library.bireme_writer_open.restype, library.bireme_writer_open.argtypes = integer, [pointer, ctypes.c_int]
    library.bireme_writer_send.restype = integer
    library.bireme_writer_send.argtypes = [pointer, integer, ctypes.c_char_p, integer]
    library.bireme_writer_flush.restype, library.bireme_writer_flush.argtypes = None, [pointer]
    library.bireme_writer_close.restype, library.bireme_writer_close.argtypes = None, [pointer, integer, ctypes.c_int]
    return library, library.bireme_writer_new()
