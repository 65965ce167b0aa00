"""What an engine's step brings to many connections is written at its end: a write wakes who reads, and the next one finds the
caches as that left them.

``step_writer.cc`` sends by itself, and makes chunks of most tokens (``TokenLane``); ``LoopStepWriter``, its plain twin, has the
transports write, and serves where nothing can be compiled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from gpu_ops.build import OpBuildError
from gpu_ops.extension import load_extension

logger = logging.getLogger("ray.serve")

SOURCE = Path(__file__).with_name("step_writer.cc")


class Flow(Protocol):
    """
    Attributes:
        write_paused: the transport holds so much that nothing more is to be written.
    """

    write_paused: bool


class Outlet(Protocol):
    """A connection. While a step is under way, nobody else writes to its transport without a ``flush`` before."""

    def write(self, data: bytes) -> None:
        """Write ``data`` behind all that was written before: at once, or at the end of the step that is under way."""

    def flush(self) -> None:
        """Write what waits for the step's end now."""


class StepWriter(Protocol):
    """Of one thread."""

    def outlet(self, transport: asyncio.WriteTransport, flow: Flow, fd: int) -> Outlet:
        """What writes to a connection; lanes pass it by while ``flow`` is paused. ``fd`` is its socket, or -1 if the
        transport alone may write there."""

    def begin(self) -> None:
        """A step begins."""

    def end(self) -> None:
        """The step is over: write what it brought. One connection's failure is logged, and no other's."""


class TokenLane(Protocol):
    """The quick way of a choice's tokens: ``put`` makes its next chunk of a token and leaves it to an outlet.

    Attributes:
        is_open: False: every token goes the slow way. So do those whose text depends on their neighbours, at any time.
        has_written: set when it has.
    """

    is_open: bool
    has_written: bool

    def put(self, index: int, token: int) -> None: ...


class LoopStepWriter:
    """Has transports write."""

    def __init__(self) -> None:
        self._unsent: list[_LoopOutlet] | None = None

    def outlet(self, transport: asyncio.WriteTransport, flow: Flow, fd: int) -> Outlet:
        """As ``StepWriter``."""
        return _LoopOutlet(self, transport)

    def begin(self) -> None:
        self._unsent = self._unsent or []

    def end(self) -> None:
        unsent, self._unsent = self._unsent, None
        for outlet in unsent or ():
            try:
                outlet.flush()
            except Exception:  # the others want theirs
                logger.exception("writing to a connection failed")

    def waits(self, outlet: _LoopOutlet) -> bool:
        """Whether ``outlet`` is to wait for the end of a step; it is then flushed."""
        if self._unsent is None:
            return False
        self._unsent.append(outlet)
        return True


class _LoopOutlet:
    def __init__(self, writer: LoopStepWriter, transport: asyncio.WriteTransport) -> None:
        self._writer = writer
        self._transport = transport
        self._pending = b""

    def write(self, data: bytes) -> None:
        if self._pending:
            self._pending += data
        elif self._writer.waits(self):
            self._pending = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        data, self._pending = self._pending, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)


_of_thread = threading.local()


def step_writer() -> StepWriter:
    """This thread's."""
    try:
        return _of_thread.writer
    except AttributeError:
        native = native_module()
        _of_thread.writer = LoopStepWriter() if native is None else native.StepWriter()
        return _of_thread.writer


@contextlib.contextmanager
def one_step() -> Iterator[None]:
    """What is written meanwhile leaves at the end, by connection. Nobody may wait for anything meanwhile."""
    writer = step_writer()
    writer.begin()
    try:
        yield
    finally:
        writer.end()


@functools.cache
def native_module() -> Any | None:
    """``step_writer.cc`` where there is a compiler, or was when the cache was filled; else None."""
    try:
        return load_extension(SOURCE)
    except (OpBuildError, ImportError) as error:
        logger.warning("tokens are written one by one by Python, which is slower: %s", error)
        return None
