"""The engine replica's eye on its runner and on Serve: life signs, and the notice to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from cluster.config import LLMConfig
from cluster.process.process_liveness import PeerProcess
from cluster.process.silence_clock import TICK_S, SilenceClock
from deployments.ray_private.serve import replica_is_stopping
from deployments.replica.drain_notice import node_drain_seconds

logger = logging.getLogger("ray.serve")

_NODE_LOOK_TICKS = 4
# Taken from the time until Serve kills the replica, or until the node is gone: what continues elsewhere is sent off by then.
_DRAIN_MARGIN_S = 2.0
# A runner this long silent gets no new request, though it is not given up yet.
_SUSPECT_S = 1.0


class RunnerWatch:
    """Pings the runner, and drains it when this replica has to leave.

    Args:
        dead: called once when the runner died or hangs; it is killed by then.

    Attributes:
        stopping: Serve shuts this replica down.
        node_drains: the node is to be taken away; Serve starts a replacement before it stops this replica.
    """

    def __init__(
        self, runner: Any, engine_id: str, config: LLMConfig, shutdown_timeout_s: float, dead: Callable[[str], None]
    ) -> None:
        self.stopping = False
        self.node_drains = False
        self._runner = runner
        self._engine_id = engine_id
        self._hang_timeout_s = config.hang_timeout_s
        self._drain_timeout_s = min(config.drain_timeout_s, max(0.0, shutdown_timeout_s - _DRAIN_MARGIN_S))
        self._dead = dead
        self._clock = SilenceClock()
        self._process: PeerProcess | None = None
        self._ping: asyncio.Future | None = None
        self._draining: asyncio.Future | None = None
        self._leaves_with_node = False
        self._node_look: asyncio.Future = asyncio.get_running_loop().create_future()
        self._node_look.set_result(None)
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def suspects_hang(self) -> bool:
        """The runner has not answered for a while."""
        return self._clock.silent_s > min(_SUSPECT_S, self._hang_timeout_s)

    def check(self) -> None:
        """Raise RuntimeError if the runner hangs."""
        if self._clock.silent_s > self._hang_timeout_s:
            raise RuntimeError(f"the runner of {self._engine_id} has been silent for {self._clock.silent_s:.1f} s")

    async def drained(self) -> None:
        """Return when the runner has no request any more: Serve does not know yet of those whose call is to come."""
        if self._draining is None:
            self._drain(self._drain_timeout_s)
        assert self._draining is not None
        await asyncio.wait((self._draining,), timeout=self._drain_timeout_s + _DRAIN_MARGIN_S)

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        try:
            ticks = 0
            while True:
                self._look_at_serve()
                if ticks % _NODE_LOOK_TICKS == 0 and not self.stopping and self._node_look.done():
                    self._node_look = asyncio.ensure_future(self._look_at_node())
                why = await self._hear_runner()
                if why is not None:
                    break
                ticks += 1
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("the watch of %s failed", self._engine_id)
            why = "its watch failed"
        self._kill_by_signal()
        self._dead(why)
        # Asked last, and not waited for: Ray's directory may be slow, and the replies that tell of the death must leave.
        await asyncio.to_thread(ray.kill, self._runner)

    async def _hear_runner(self) -> str | None:
        """One tick; why the runner is dead, or None."""
        if self._ping is None:
            self._ping = asyncio.ensure_future(self._runner.ping.remote(os.getpid()))
        await asyncio.wait((self._ping,), timeout=TICK_S)
        if self._ping.done():
            try:
                pid = self._ping.result()
            except ActorDiedError as error:
                return str(error).splitlines()[0]
            except ActorUnavailableError as error:
                logger.warning("the runner of %s does not answer: %s", self._engine_id, error)
                self._ping = None
                await asyncio.sleep(TICK_S)
                return self._verdict()
            except RayError as error:
                return f"its runner is not healthy: {str(error).splitlines()[-1]}"
            self._ping = None
            self._process = self._process or PeerProcess(pid)
            self._clock.heard()
            await asyncio.sleep(TICK_S)
        return self._verdict()

    def _verdict(self) -> str | None:
        if self._process is not None and self._process.has_ended():
            return "the runner's process has ended"
        if self._clock.tick() > self._hang_timeout_s:
            return f"the runner has been silent for {self._clock.silent_s:.1f} s"
        return None

    def _look_at_serve(self) -> None:
        if not self.stopping and replica_is_stopping():
            self.stopping = True
            self._drain(self._drain_timeout_s)

    async def _look_at_node(self) -> None:
        seconds = await asyncio.to_thread(node_drain_seconds)
        if seconds is None:
            return
        if not self.node_drains:
            self.node_drains = True
            logger.info("event=node_drain engine=%s seconds_left=%.0f", self._engine_id, seconds)
        if not self._leaves_with_node and seconds - _DRAIN_MARGIN_S < self._drain_timeout_s:
            self._leaves_with_node = True
            self._drain(max(0.0, seconds - _DRAIN_MARGIN_S))

    def _drain(self, timeout_s: float) -> None:
        """Begin to drain. Of several notices the engine keeps the earliest time."""
        logger.info("event=drain engine=%s timeout_s=%.1f", self._engine_id, timeout_s)
        self._draining = asyncio.ensure_future(self._runner.drain.remote(timeout_s))
        self._draining.add_done_callback(self._drained)

    def _drained(self, done: asyncio.Future) -> None:
        if not done.cancelled() and done.exception() is None:
            logger.info("event=drained engine=%s handed_over=%d", self._engine_id, done.result())

    def _kill_by_signal(self) -> None:
        """A process that is stopped does not hear Ray's message."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
