"""The long-lived streams on which engines send tokens to one ingress: one a pair, one message an engine step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray

from cluster.journal import JournalGapError
from cluster.outputs import AttachRequired, EngineLoad, StreamItem, TokenDelta
from cluster.process.logs import Seldom
from cluster.process.process_liveness import has_ended
from cluster.process.silence_clock import TICK_S, SilenceClock
from cluster.request import EngineRequest
from deployments.replica.frames import UnusableSocketError
from deployments.replica.token_listener import RequestSender, listen
from deployments.routing.admission import EndRate
from deployments.routing.router.engine_choices import AVOID_REFUSING_S, EngineChoices

logger = logging.getLogger("ray.serve")

_MAX_BREAKS = 4
_FIRST_BACKOFF_S = 0.05
_RENEW_TICKS = 8
# Engines speak four times a second. One that has been silent for so long gets nothing new, though it is not given up yet.
_SUSPECT_S = 1.0
# Tokens that are on their way when a request is given up come within this time; later ones say that the engine still runs it.
_ABORT_PATIENCE_S = 1.0
_ABORTS_BEFORE_A_FAULT = 2
_MAX_ABORTS_KEPT = 1000


class TokenStream:
    """The stream from one engine.

    Attributes:
        engine_id, fingerprint: of the engine.
        runner: handle of its runner actor.
        alive: False once the engine is known to be gone.
        is_leased: over Ray, from another node or because the socket is no use; the engine wants to hear now and then that this
            ingress is there.
        socket: node id and path, as the runner gave them.
        pid: of the runner, if it is on this machine and was reached; else 0.
        load: what the engine said of itself last; None before its first word.
        ends: how many requests end there.
        leaves: it said that it takes nothing new.
        breaks: how often it broke since something came.
        silent: nothing was heard for ``hang_timeout_s``: the engine counts as gone until it speaks again.
    """

    def __init__(self, reply: AttachRequired) -> None:
        self.engine_id = reply.engine_id
        self.fingerprint = reply.fingerprint
        self.runner: Any = reply.runner
        self.alive = True
        self.load: EngineLoad | None = None
        self._heard_at = 0.0
        self.ends = EndRate()
        self.leaves = False
        self.silent = False
        self.breaks = 0
        self.renewals = 0
        self.is_leased = False
        self.clock = SilenceClock()
        self.socket: tuple[str, str] | None = None
        self.pid = 0
        self._sender: RequestSender | None = None
        self.task: asyncio.Task | None = None
        self._aborts: dict[tuple[str, int], tuple[float, int]] = {}  # when it was told last, and how often

    def reached(self, pid: int, sender: RequestSender) -> None:
        """The runner's process, on this machine, has this id, and may be sent requests."""
        self.pid, self._sender = pid, sender

    def send(self, request: EngineRequest) -> bool:
        """Have the engine begin a request whose call follows or is on its way; False if it cannot be told now."""
        is_well = self.alive and not self.silent and not self.leaves
        return is_well and self._sender is not None and self._sender.send(request)

    def announced(self, load: EngineLoad) -> None:
        """The engine says how much it takes."""
        self.load, self._heard_at = load, time.monotonic()
        self.ends.count(load.num_ended)

    @property
    def load_age_s(self) -> float:
        """How long ago the engine saw its queue as ``load`` says: by the clock that engine and ingress share on one machine, else
        as old as it was when it was told, and since it was heard."""
        if self.load is None:
            return float("inf")
        if self.pid:
            return max(0.0, time.time() - self.load.sampled_at)
        return self.load.told_after_s + time.monotonic() - self._heard_at

    def abort(self, request_id: str, attempt: int) -> None:
        """Tell the engine to give up a request; not waited for. Where it can be, this comes behind the request itself."""
        key = request_id, attempt
        self._aborts[key] = time.monotonic(), self._aborts.get(key, (0.0, 0))[1] + 1
        if len(self._aborts) > _MAX_ABORTS_KEPT:
            del self._aborts[next(iter(self._aborts))]
        if self.alive and not (self._sender is not None and self._sender.abort(key)):
            self.runner.abort.remote(request_id, attempt)

    def was_told(self, request_id: str, attempt: int) -> bool:
        """Whether the engine was to give up a request."""
        return (request_id, attempt) in self._aborts

    def unwanted(self, delta: TokenDelta) -> bool:
        """Nobody wants ``delta``. Give its request up if the engine runs it still; True if it was told before, and twice: a step
        that takes long hears of it late."""
        key = delta.request_id, delta.attempt
        if not delta.token_ids or delta.finish_reason is not None:
            return False
        told_at, times = self._aborts.get(key, (float("-inf"), 0))
        if time.monotonic() - told_at < _ABORT_PATIENCE_S:
            return False
        self.abort(*key)
        return times >= _ABORTS_BEFORE_A_FAULT


class TokenStreams:
    """All streams of one ingress.

    An engine that is silent for a second is avoided in ``choices``.
    ``deliver(stream, deltas)`` gets every message, and may raise JournalGapError to have the stream attached again from what
    ``resume_indices()`` says; ``lost(stream, why)`` is called when an engine is gone or has been silent for
    ``hang_timeout_s`` seconds.
    """

    def __init__(
        self,
        subscriber: str,
        choices: EngineChoices,
        deliver: Callable[[TokenStream, Sequence[StreamItem]], None],
        resume_indices: Callable[[], dict[str, int]],
        lost: Callable[[TokenStream, str], None],
        hang_timeout_s: float,
    ) -> None:
        self.subscriber = subscriber
        self._choices = choices
        self._deliver = deliver
        self._resume_indices = resume_indices
        self._lost = lost
        self._hang_timeout_s = hang_timeout_s
        self._streams: dict[str, TokenStream] = {}
        self._listening: asyncio.Task | None = None
        self._may_complain = Seldom()

    def __iter__(self) -> Iterator[TokenStream]:
        return iter(self._streams.values())

    def of(self, engine_id: str) -> TokenStream | None:
        """The stream from an engine; None if there is none, or none any more."""
        return self._streams.get(engine_id)

    def attach(self, reply: AttachRequired) -> bool:
        """Open the stream that ``reply`` asks for; False if it is open already (concurrent requests share it)."""
        if reply.engine_id in self._streams:
            return False
        stream = TokenStream(reply)
        self._streams[stream.engine_id] = stream
        loop = asyncio.get_running_loop()
        stream.task = loop.create_task(self._pump(stream))
        if self._listening is None:
            self._listening = loop.create_task(self._listen())
        return True

    async def _listen(self) -> None:
        """Notice streams whose engine has ended, and those that fell silent. The latter stay open: when the engine speaks again,
        it is used again."""
        while True:
            await asyncio.sleep(TICK_S)
            for stream in list(self._streams.values()):
                try:
                    self._look_at(stream)
                except Exception:  # the other streams still want to be listened to
                    if self._may_complain():
                        logger.exception("listening to engine %s failed", stream.engine_id)

    def _look_at(self, stream: TokenStream) -> None:
        if stream.pid and has_ended(stream.pid):
            if stream.task is not None:
                stream.task.cancel()
            self._end(stream, "its process has ended")
            return
        if stream.is_leased:
            stream.renewals += 1
            if stream.renewals % _RENEW_TICKS == 0:
                stream.runner.renew.remote(self.subscriber)
        silent_s = stream.clock.tick()
        if silent_s > _SUSPECT_S:
            self._choices.avoid(stream.engine_id, AVOID_REFUSING_S)
        if silent_s > self._hang_timeout_s and not stream.silent:
            stream.silent = True
            why = f"nothing was heard from it for {self._hang_timeout_s:g} s"
            logger.warning("event=engine_silent engine=%s: %s", stream.engine_id, why)
            self._lost(stream, why)

    def _heard(self, stream: TokenStream) -> None:
        stream.clock.heard()
        if stream.silent:
            stream.silent = False
            logger.warning("event=engine_speaks_again engine=%s", stream.engine_id)

    async def _pump(self, stream: TokenStream) -> None:
        why = ""
        while stream.breaks < _MAX_BREAKS:
            try:
                await self._receive(stream)
                why = "the engine closed the token stream"
            except JournalGapError as error:
                why = str(error)
            except ray.exceptions.ActorDiedError as error:
                why = str(error).splitlines()[0]
                break
            except (ConnectionRefusedError, FileNotFoundError):
                why = "its process is gone: nobody listens on its socket"
                break
            except (ray.exceptions.RayError, OSError) as error:
                why = str(error).splitlines()[0]
            except Exception as error:  # whatever it was, the requests on this stream must learn that it ended
                logger.exception("token stream of engine %s failed", stream.engine_id)
                why = f"{type(error).__name__}: {error}"
            stream.breaks += 1
            await asyncio.sleep(_FIRST_BACKOFF_S * 2**stream.breaks)
        self._end(stream, why)

    def _end(self, stream: TokenStream, why: str) -> None:
        logger.warning("token stream of engine %s ended: %s", stream.engine_id, why)
        stream.alive = False
        self._streams.pop(stream.engine_id, None)
        self._lost(stream, why)

    def _got(self, stream: TokenStream, items: Sequence[StreamItem]) -> None:
        self._heard(stream)
        if items:
            self._deliver(stream, items)
        stream.breaks = 0

    async def _receive(self, stream: TokenStream) -> None:
        """Take what the engine says until it says nothing more."""
        got = partial(self._got, stream)
        if stream.socket is None:
            stream.socket = await stream.runner.token_socket.remote()
        node_id, path = stream.socket
        if node_id == ray.get_runtime_context().get_node_id() and not stream.is_leased:
            try:
                await listen(path, self.subscriber, self._resume_indices(), got, stream.reached)
                return
            except UnusableSocketError as error:
                if stream.pid:  # it was usable: the runner has closed it
                    raise FileNotFoundError(str(error)) from None
                logger.warning("tokens of engine %s come through Ray: %s", stream.engine_id, error)
        # Ray does not tell a generator that its consumer is gone.
        stream.is_leased = True
        attach = stream.runner.attach.options(num_returns="streaming")
        async for message in attach.remote(self.subscriber, self._resume_indices(), leased=True):
            got(await message)

    async def close(self) -> None:
        """Detach from every engine."""
        if self._listening is not None:
            self._listening.cancel()
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            if stream.task is not None:
                stream.task.cancel()
            stream.runner.detach.remote(self.subscriber)
