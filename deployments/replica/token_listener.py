"""The ingress's side of a token socket (``token_messages``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from cluster.outputs import StreamItem
from cluster.process.process_liveness import has_ended
from cluster.request import EngineRequest, RequestKey
from deployments.replica.frames import MAX_REQUEST_BYTES, FrameProtocol, UnusableSocketError, encode_request, is_ours
from deployments.replica.token_messages import TOLD_VERSION, VERSION, from_wire
from deployments.start.run_files.private_folder import not_private

_ENDING_S, _ENDING_LOOKS = 0.2, 10
_LONGEST_MESSAGE = 1 << 32


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
    listening = _Listening(deliver)
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
        connection.send([VERSION, subscriber, resume])
        await _check_version(path, listening, pid)
        if reached is not None and pid:
            reached(pid, RequestSender(connection))
        await listening.ended
    finally:
        connection.close()
        if listening.ended.done() and not listening.ended.cancelled():
            listening.ended.exception()  # was told, or is nobody's any more


class _Listening:
    """An ingress's connection: the runner's version, then messages."""

    def __init__(self, deliver: Callable[[list[StreamItem]], None]) -> None:
        self._deliver = deliver
        self.version: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        """None if the connection ended before, or what came is none."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what ``deliver`` raised."""

    def got(self, connection: FrameProtocol, frame: bytes) -> None:
        if not self.version.done():
            try:
                self.version.set_result(TOLD_VERSION.decode(frame))
            except msgspec.DecodeError:
                self.version.set_result(None)
            return
        if self.ended.done() or self.version.result() != VERSION:
            return
        try:
            self._deliver(from_wire(frame))
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
        raise UnusableSocketError(f"{path}: the runner's code does not know frames of version {VERSION}")
    if version != VERSION:
        raise UnusableSocketError(f"{path}: the runner speaks version {version} of the frames, this process {VERSION}")


async def _ends(pid: int) -> bool:
    """Whether a process that closed its connection has ended, or does so now: its files are closed a little before that shows."""
    for _ in range(_ENDING_LOOKS if pid else 0):
        if has_ended(pid):
            return True
        await asyncio.sleep(_ENDING_S / _ENDING_LOOKS)
    return False
