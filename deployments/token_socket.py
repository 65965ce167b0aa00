"""Token messages over a Unix socket, for an ingress on the runner's own machine.

A Ray stream costs both processes about a millisecond a message, which matters where they share the cores that compute;
a socket costs a twentieth of that. What travels is the same: the items of ``RunnerActor.attach``.

Wire: the client sends one frame ``[subscriber, resume]``; the server answers with one frame a message, a list of deltas as
arrays. A frame is a length (4 bytes, big endian) and JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray._private import worker

from cluster.outputs import TokenDelta, TokenLogprobs

Attach = Callable[[str, dict[str, int]], AsyncIterator[list[TokenDelta]]]
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class TokenSocket:
    """The runner's side. The socket lies in a folder that only this user may enter, inside that of Ray's own sockets: what a
    killed process leaves there is cleaned up with Ray's session."""

    def __init__(self, attach: Attach) -> None:
        self._attach = attach
        self._folder = tempfile.mkdtemp(prefix="t-", dir=_ray_sockets())
        # No longer than the names of Ray's sockets: a path has at most 107 characters.
        self.path = os.path.join(self._folder, "s")
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def close(self) -> None:
        """Stop listening and remove the socket; open connections end with their streams."""
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subscriber, resume = await _read_frame(reader)
        messages = self._attach(subscriber, resume)
        # An idle stream learns of a client that is gone only here: nothing else is ever read.
        gone = asyncio.ensure_future(reader.read())
        try:
            while True:
                message = asyncio.ensure_future(anext(messages))
                await asyncio.wait((message, gone), return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    # Cancelled inside its generator, the stream ends there and the subscriber is detached.
                    message.cancel()
                    await asyncio.wait((message,))
                    break
                _write_frame(writer, message.result())
                await writer.drain()
        except (StopAsyncIteration, ConnectionError):
            pass
        finally:
            gone.cancel()
            writer.close()


def _ray_sockets() -> str | None:
    """Folder of the sockets of this process's Ray session; None outside Ray."""
    node = worker._global_node
    return None if node is None else node.get_sockets_dir_path()


async def read_messages(
    path: str, subscriber: str, resume: dict[str, int], reached: Callable[[int], None] | None = None
) -> AsyncIterator[list[TokenDelta]]:
    """The ingress's side: attach and yield messages until the runner closes the stream.

    Args:
        reached: called with the id of the process that listens, as this process sees it.

    Raises:
        OSError: the socket is not there or broke.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        if reached is not None and (pid := _listener(writer)):
            reached(pid)
        _write_frame(writer, [subscriber, resume])
        while True:
            try:
                rows = await _read_frame(reader)
            except asyncio.IncompleteReadError:
                return
            yield [_delta(row) for row in rows]
    finally:
        writer.close()


def _listener(writer: asyncio.StreamWriter) -> int:
    """Id of the process at the other end of a Unix socket; 0 if it cannot be seen from here."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    pid, _user, _group = _CREDENTIALS.unpack(told)
    return pid


def _write_frame(writer: asyncio.StreamWriter, value: Any) -> None:
    body = json.dumps(value, separators=(",", ":")).encode()
    writer.write(_LENGTH.pack(len(body)) + body)


async def _read_frame(reader: asyncio.StreamReader) -> Any:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return json.loads(await reader.readexactly(length))


def _delta(row: list[Any]) -> TokenDelta:
    """A delta from its JSON array; named tuples arrive as plain lists."""
    delta = TokenDelta(*row)
    if delta.logprobs is None and delta.prompt_logprobs is None:
        return delta
    logprobs, prompt_logprobs = delta.logprobs, delta.prompt_logprobs
    return delta._replace(
        logprobs=None if logprobs is None else [TokenLogprobs(*entry) for entry in logprobs],
        prompt_logprobs=None
        if prompt_logprobs is None
        else [None if entry is None else TokenLogprobs(*entry) for entry in prompt_logprobs],
    )
