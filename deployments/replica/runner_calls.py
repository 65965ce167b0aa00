"""Calls of ``RunnerActor.generate`` from an engine's replica to its runner, over a Unix socket.

Both live on one machine. A call of Ray costs each of them most of a millisecond, as long as a small model's step on a fast GPU;
a frame costs a fraction of that. What is called is the same. A call that does not fit into a frame goes through Ray.

Wire: frames as in ``frames``. The replica sends ``Call``, ``Follow`` and ``Abort``; the runner answers each call with ``[number,
name of the reply's or the error's class, its fields]``, in the order in which calls end.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from ray.exceptions import RayTaskError

from cluster.errors import BiremeError, EngineDeadError, InvalidRequestError, OverloadedError, StaleAttemptError
from cluster.outputs import AttachRequired, GenerateReply, NotAdmitted, NotBegun
from cluster.request import EngineRequest, RequestKey
from deployments.replica.frames import MAX_REQUEST_BYTES, FrameProtocol, UnusableSocketError, encode_request
from deployments.start.run_files.private_folder import not_private

logger = logging.getLogger("bireme.runner")

Reply = GenerateReply | AttachRequired | NotAdmitted | NotBegun
# Beside a request's own fields.
_LONGEST = MAX_REQUEST_BYTES + 1024
# A runner that does not read for so long hears the rest through Ray.
_MAX_UNSENT_BYTES = 4 * MAX_REQUEST_BYTES


class RunnerFailure(Exception):
    """The runner raised what no request should make it raise; the message begins with the kind of error."""


class Call(msgspec.Struct, array_like=True, tag="call"):
    """``generate``.

    Attributes:
        number: of this call on this connection.
        request: an ``EngineRequest`` with this key; not read where it came ahead of its call.
    """

    number: int
    request_id: str
    attempt: int
    request: msgspec.Raw


class Follow(msgspec.Struct, array_like=True, tag="follow"):
    """Calls of ``generate`` for requests that came ahead, without them.

    Attributes:
        calls: number of the call, request id and attempt of each.
    """

    calls: list[tuple[int, str, int]]


class Abort(msgspec.Struct, array_like=True, tag="abort"):
    """Whoever called does not want the answer any more."""

    request_id: str
    attempt: int


_FRAME = msgspec.msgpack.Decoder(Call | Follow | Abort)
_REQUEST = msgspec.msgpack.Decoder(EngineRequest)
_ANSWER = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw])
_REPLIES: dict[str, msgspec.msgpack.Decoder[Any]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind) for kind in (GenerateReply, AttachRequired, NotAdmitted, NotBegun)
}
_ERRORS = {kind.__name__: kind for kind in (InvalidRequestError, OverloadedError, StaleAttemptError, EngineDeadError)}
_ERROR = msgspec.msgpack.Decoder(tuple[str, str | None, str])
_FAILURE = RunnerFailure.__name__


class CallSocket:
    """The runner's side.

    Args:
        generate: as ``RunnerActor.generate``.
        take_ahead: what a request that came ahead of its call will be answered with; None if it did not.
        abort: ends a request if it is here.
    """

    def __init__(
        self,
        generate: Callable[[EngineRequest], Awaitable[Reply]],
        take_ahead: Callable[[RequestKey], asyncio.Future[Any] | None],
        abort: Callable[[RequestKey], None],
    ) -> None:
        self._generate = generate
        self._take_ahead = take_ahead
        self._abort = abort
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Future[Any]] = set()

    async def open(self, path: str) -> None:
        """Listen at ``path``, in a folder that only this user may enter."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: FrameProtocol(self._got, lambda connection: None, _LONGEST), path
        )
        os.chmod(path, 0o600)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def _got(self, connection: FrameProtocol, frame: bytes) -> None:
        message, loop = _FRAME.decode(frame), asyncio.get_running_loop()
        if isinstance(message, Abort):
            # After the first step of a call that came just before.
            loop.call_soon(self._abort, (message.request_id, message.attempt))
            return
        if isinstance(message, Follow):
            for number, request_id, attempt in message.calls:
                self._follow(connection, number, (request_id, attempt))
            return
        running = self._take_ahead((message.request_id, message.attempt))
        if running is None:
            running = loop.create_task(self._begin(message))
        self._answer_when_done(connection, message.number, running)

    def _follow(self, connection: FrameProtocol, number: int, key: RequestKey) -> None:
        running = self._take_ahead(key)
        if running is None:
            connection.send((number, NotBegun.__name__, tuple(NotBegun())))
        else:
            self._answer_when_done(connection, number, running)

    def _answer_when_done(self, connection: FrameProtocol, number: int, running: asyncio.Future[Any]) -> None:
        self._running.add(running)
        running.add_done_callback(lambda done: self._answer(connection, number, done))

    async def _begin(self, call: Call) -> Reply:
        return await self._generate(_REQUEST.decode(call.request))

    def _answer(self, connection: FrameProtocol, number: int, done: asyncio.Future[Any]) -> None:
        self._running.discard(done)
        error = EngineDeadError("the engine was shut down") if done.cancelled() else done.exception()
        if error is None:
            reply = done.result()
            kind, fields = type(reply).__name__, tuple(reply)  # type: tuple[str, tuple]
        elif isinstance(error, BiremeError) and type(error).__name__ in _ERRORS:
            kind, fields = type(error).__name__, (error.message, error.param, error.code)
        else:
            logger.error("a request failed", exc_info=error)
            kind, fields = _FAILURE, (f"{type(error).__name__}: {error}", None, "")
        connection.send((number, kind, fields))


class RunnerCalls:
    """The replica's side.

    Args:
        runner: handle of the runner's actor, for calls that do not fit into a frame.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._connection: FrameProtocol | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._closed = False

    async def open(self, path: str, lost: Callable[[str], None]) -> None:
        """Connect to the runner.

        Args:
            lost: called with the reason when the runner, which closes nothing while it lives, has closed the connection.

        Raises:
            UnusableSocketError: calls go through Ray.
        """
        if (fault := not_private(Path(path).parent)) is not None:
            raise UnusableSocketError(fault)

        def ended(connection: FrameProtocol) -> None:
            why = "the runner's process has ended"
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(EngineDeadError(why))
            self._waiting.clear()
            if not self._closed:
                lost(why)

        try:
            _, self._connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: FrameProtocol(self._got, ended, _LONGEST), path
            )
        except OSError as error:
            raise UnusableSocketError(f"{path}: {error.strerror}") from None

    def close(self) -> None:
        """The runner's end is no news any more."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    def follow(self, keys: Sequence[RequestKey]) -> list[asyncio.Future[Reply]]:
        """What each request that came ahead of its call will be answered with: ``NotBegun`` if it did not come. Errors are those
        of ``generate``. Who does not want an answer any more calls ``abort`` besides."""
        loop, connection = asyncio.get_running_loop(), self._connection
        answers = [loop.create_future() for _ in keys]
        if connection is None or not connection.is_open:
            for answer in answers:
                answer.set_result(NotBegun())
            return answers
        numbers = [next(self._numbers) for _ in keys]
        self._waiting.update(zip(numbers, answers))
        connection.send(Follow([(number, *key) for number, key in zip(numbers, keys)]))
        return answers

    def abort(self, keys: Sequence[RequestKey]) -> None:
        """Whoever called for these does not want their answers any more."""
        for key in keys if self._connection is not None else ():
            self._connection.send(Abort(*key))  # type: ignore[union-attr]

    async def generate(self, request: EngineRequest) -> Reply:
        """As ``RunnerActor.generate``.

        Raises:
            InvalidRequestError, OverloadedError, StaleAttemptError, EngineDeadError: as the runner.
            RunnerFailure: anything else that the runner raised.
            RayError: the call went through Ray, and Ray lost it.
        """
        connection = self._connection
        is_fit = connection is not None and connection.is_open and connection.num_unsent_bytes <= _MAX_UNSENT_BYTES
        body = encode_request(request) if is_fit else None
        if connection is None or body is None:
            return await self._through_ray(request)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        connection.send(Call(number, request.request_id, request.attempt, body))
        try:
            return await answer
        except asyncio.CancelledError:
            connection.send(Abort(request.request_id, request.attempt))
            raise
        finally:
            self._waiting.pop(number, None)

    async def _through_ray(self, request: EngineRequest) -> Reply:
        try:
            return await self._runner.generate.remote(request)
        except asyncio.CancelledError:
            self._runner.abort.remote(request.request_id, request.attempt)
            raise
        except RayTaskError as error:
            if isinstance(error.cause, BiremeError) and type(error.cause).__name__ in _ERRORS:
                raise error.cause from None
            raise RunnerFailure(f"{type(error.cause).__name__}: {error.cause}") from error

    def _got(self, connection: FrameProtocol, frame: bytes) -> None:
        number, kind, fields = _ANSWER.decode(frame)
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():
            return  # nobody wants it any more
        if kind in _REPLIES:
            waiting.set_result(_REPLIES[kind].decode(fields))
            return
        message, param, code = _ERROR.decode(fields)
        waiting.set_exception(_ERRORS[kind](message, param, code) if kind in _ERRORS else RunnerFailure(message))
