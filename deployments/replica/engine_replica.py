"""The Serve deployment of engines: one replica a copy of the model, each with a runner actor in its placement group.

The replica's own process has no Paddle: it routes calls to its runner, answers for the runner's health, and goes when it goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from cluster.config import LLMConfig
from cluster.errors import BiremeError, EngineDeadError, InvalidRequestError, OverloadedError, StaleAttemptError
from cluster.observability.start_stages import StartStages
from cluster.outputs import AttachRequired, EngineInfo, GenerateReply, NotAdmitted, NotBegun, ServedModel
from cluster.process.cores import usable_cores
from cluster.process.logs import guard_logs, log_fields
from cluster.process.process_age import process_age_s
from cluster.replies import EngineLost, FingerprintMismatch, RequestRefused
from cluster.request import EngineRequest, Followed, RequestKey
from cluster.routing.fingerprint import can_continue
from cluster.scaling.ingresses import EngineHost
from deployments.metrics.engine_metrics import export_engine_metrics
from deployments.ray_private.serve import RequestsOfACall, session_logs
from deployments.replica.frames import UnusableSocketError
from deployments.replica.replica_port import listen_where_the_node_does
from deployments.replica.reply_groups import ReplyGroups
from deployments.replica.runner_calls import RunnerCalls, RunnerFailure
from deployments.replica.runner_watch import RunnerWatch
from deployments.replica.streaming_runner import StreamingRunner
from deployments.spares.engine_processes import RUNNER, EngineProcesses
from deployments.spares.process_hook import adopted
from deployments.start.console import cannot_start
from deployments.start.run_files.session_logs import tidy_session_logs
from gpu_ops.build import OpBuildError

logger = logging.getLogger("ray.serve")

# All pending requests of an engine are calls on its runner; they wait on a future, they do not hold a thread.
_RUNNER_CONCURRENCY = 10_000
RUNNER_NAME_PREFIX = "bireme-runner::"
_EXIT_DELAY_S = 0.2
_CALL_TIMEOUT_S = 10.0

GRACEFUL_SHUTDOWN_TIMEOUT_S = 120.0

Reply = GenerateReply | AttachRequired | NotAdmitted | NotBegun | RequestRefused | EngineLost | FingerprintMismatch


class EngineReplica:
    """One engine: a replica and the runner actor it owns."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: LLMConfig, num_gpus: float = 0.0, processes: EngineProcesses | None = None
    ) -> None:
        """Start the runner and load the model.

        Args:
            num_gpus: what the runner's bundle of the placement group holds.
            processes: how processes of such engines are started, so that Ray finds the spare ones.

        Raises:
            RuntimeError: the model cannot be served; one sentence that says why.
        """
        now = time.monotonic()
        began_at = max(now - process_age_s(), adopted())
        stages = StartStages(began_at, {"replica": now})
        listen_where_the_node_does()
        tidy_session_logs()
        guard_logs("ray.serve")
        # As Ray's dashboard and Serve's logs call the replica.
        self._engine_id = f"engine-{serve.get_replica_context().replica_id.unique_id}"
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watch: RunnerWatch | None = None
        self._host = _host(config, num_gpus)
        runner = ray.remote(StreamingRunner).options(
            num_cpus=config.runner_num_cpus,
            num_gpus=num_gpus,
            max_concurrency=_RUNNER_CONCURRENCY,
            max_restarts=0,
            scheduling_strategy=_runner_bundle(),
            name=runner_names() + self._engine_id,
            runtime_env={"env_vars": processes.variables[RUNNER]} if processes else None,
        )
        self._runner: Any = runner.remote(config.engine_config(), self._engine_id, stages)
        self._calls = RunnerCalls(self._runner)
        try:
            self._info: EngineInfo = await self._runner.start.remote()
        except RayTaskError as error:
            if isinstance(error.cause, (BiremeError, OpBuildError)):
                raise cannot_start(str(error.cause)) from None
            raise
        await self._connect()
        logger.info(log_fields(event="runner_started", engine=self._engine_id, log=await _runner_log(self._runner)))
        self._exporting = asyncio.create_task(export_engine_metrics(self._engine_id, self.stats))

        shutdown_timeout_s = config.deployment_config.get("graceful_shutdown_timeout_s", GRACEFUL_SHUTDOWN_TIMEOUT_S)
        self._watch = RunnerWatch(self._runner, self._engine_id, config, shutdown_timeout_s, self._exit_soon)

    async def _connect(self) -> None:
        try:
            await self._calls.open(await self._runner.call_socket.remote(), self._exit_soon)
        except UnusableSocketError as error:
            logger.warning("requests go to the runner through Ray, which costs more: %s", error)

    async def info(self) -> EngineInfo:
        """Constants of the engine."""
        return self._info

    async def record_replica_metadata(self) -> dict[str, str]:
        """What routers and operators may know of this replica before they send it anything."""
        info = self._info
        model = ServedModel(info.model_id, info.max_model_len, info.vocab_size)
        known = {"engine_id": info.engine_id, "fingerprint": info.fingerprint}
        return {**known, **model.as_metadata(), **self._host.as_metadata()}

    async def generate(self, request: EngineRequest, fingerprint: str = "", last_resort: bool = False) -> Reply:
        """Run one request to its end; cancelling the call aborts it.

        Args:
            fingerprint: of the engine that made ``request.output_token_ids``; empty if there are none.
            last_resort: other engines did not take it; an engine whose node drains then does, as long as it serves at all.
        """
        info, came_at = self._info, time.time()
        if fingerprint and not can_continue(info.fingerprint, fingerprint):
            return FingerprintMismatch(info.engine_id, info.fingerprint)
        refusal = self._refusal(last_resort)
        if refusal is not None:
            return refusal
        try:
            reply = await self._unless_dead(self._calls.generate(request))
        except Exception as error:
            return self._lost_by(error)
        return self._said(reply, came_at)

    async def follow(self, followed: Followed) -> AsyncIterator[list[tuple[RequestKey, Reply]]]:
        """Wait for the ends of requests that were sent ahead of their calls: one call of Serve's, which counts as so many.
        Cancelling it aborts those that have not ended. Yields replies when some have come, those of answers a moment later."""
        info, came_at, keys = self._info, time.time(), followed.keys
        refusal = self._refusal_of_begun(followed.engine_id)
        if refusal is not None:
            yield [(key, refusal) for key in keys]
            return
        counted = RequestsOfACall()
        waiting: dict[RequestKey, asyncio.Future] = {}
        replies: ReplyGroups | None = None
        try:
            num_taken = await counted.take(len(keys))
            if num_taken < len(keys):
                beyond = NotAdmitted(info.engine_id, "the engine's replica has max_ongoing_requests")
                yield [(key, beyond) for key in keys[num_taken:]]
            waiting = dict(zip(keys[:num_taken], self._calls.follow(keys[:num_taken])))
            replies = ReplyGroups(waiting.values(), self._death)
            while waiting:
                await replies.wait()
                ended = [key for key, reply in waiting.items() if reply.done() or self._death.done()]
                said = [(key, self._reply_in(waiting.pop(key), came_at)) for key in ended]
                counted.end(len(said))
                yield said
        finally:
            if replies is not None:
                replies.close()
            self._calls.abort(list(waiting))
            for reply in waiting.values():
                reply.cancel()
            counted.close()

    def _refusal_of_begun(self, engine_id: str) -> NotAdmitted | NotBegun | None:
        """Why requests that ``engine_id`` may have begun do not run on here. One that leaves lets them run or hands them over."""
        assert self._watch is not None
        if engine_id != self._info.engine_id:
            return NotBegun(self._info.engine_id)
        if self._watch.suspects_hang or self._death.done():
            return self._refusal(last_resort=True)
        return None

    def _refusal(self, last_resort: bool) -> NotAdmitted | None:
        """Why this engine takes no request now; None if it does."""
        watch, engine_id = self._watch, self._info.engine_id
        assert watch is not None
        if watch.stopping:
            return NotAdmitted(engine_id, "the engine leaves")
        if watch.node_drains and not last_resort:
            return NotAdmitted(engine_id, "the engine's node drains", last_resort=True)
        if watch.suspects_hang:
            return NotAdmitted(engine_id, "the engine does not answer", last_resort=True)
        if self._death.done():
            return NotAdmitted(engine_id, "the engine is gone")
        return None

    def _reply_in(self, reply: asyncio.Future, came_at: float) -> Reply:
        """What to say of ``reply``, which has come unless the runner is dead."""
        if not reply.done():
            reply.cancel()
            return self._lost_by(EngineDeadError(self._death.result()))
        error = reply.exception()
        return self._said(reply.result(), came_at) if error is None else self._lost_by(error)

    def _lost_by(self, error: BaseException) -> Reply:
        """What it means that a call of the runner raised ``error``; raises what it should not."""
        engine_id = self._info.engine_id
        if isinstance(error, ActorDiedError):
            why = str(error).splitlines()[0]
            self._exit_soon(why)
            return EngineLost(engine_id, why, died=True)
        if isinstance(error, EngineDeadError):
            return EngineLost(engine_id, error.message, died=True)
        if isinstance(error, InvalidRequestError | OverloadedError):
            return RequestRefused(error)
        if isinstance(error, StaleAttemptError):
            return EngineLost(engine_id, error.message)
        if isinstance(error, RunnerFailure):
            logger.error("the runner failed on a request: %s", error)
            return EngineLost(engine_id, str(error))
        if isinstance(error, RayError):
            return EngineLost(engine_id, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        raise error

    def _said(self, reply: Any, came_at: float) -> Reply:
        info = self._info
        if isinstance(reply, AttachRequired):
            return reply._replace(runner=self._runner)
        if isinstance(reply, GenerateReply):
            marks = reply.marks or {}
            # What came ahead of its call did not pass here.
            passed = {"replica": came_at} if came_at <= marks.get("runner", came_at) else {}
            return reply._replace(engine_id=info.engine_id, marks={**marks, **passed})
        return reply

    async def _unless_dead(self, call: Any) -> Any:
        """The reply of a call on the runner; EngineDeadError as soon as this replica knows that it died, which may be sooner than
        Ray does."""
        reply = asyncio.ensure_future(call)
        try:
            await asyncio.wait((reply, self._death), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            reply.cancel()
            raise
        if reply.done():
            return reply.result()
        reply.cancel()
        raise EngineDeadError(self._death.result())

    async def stats(self) -> dict:
        """Counters of the runner."""
        return await self._runner.stats.remote()

    async def check_integrity(self) -> dict:
        """Raise if the engine's accounting is inconsistent; else its counters."""
        return await self._runner.check_integrity.remote()

    async def check_health(self) -> None:
        """Raise if the runner died or hangs, so that Serve replaces this replica; its watch mostly ends it sooner."""
        if self._watch is not None:
            self._watch.check()
        if self._death.done():
            raise RuntimeError(f"runner of {self._engine_id} died")

    def _exit_soon(self, why: str) -> None:
        """End this process: routers drop a dead replica at once, an unhealthy one only after its next health check."""
        if not self._death.done():
            self._death.set_result(why)
            logger.error("event=engine_dead engine=%s: %s; this replica ends and is replaced", self._engine_id, why)
            asyncio.get_running_loop().call_later(_EXIT_DELAY_S, os._exit, 1)

    async def __del__(self) -> None:
        """Called by Serve once the last request has ended."""
        if self._watch is not None:
            if not self._death.done():
                await self._watch.drained()
            self._watch.close()
        if self._runner is not None and not self._death.done():
            self._calls.close()
            try:
                await asyncio.wait_for(self._runner.shutdown.remote(), _CALL_TIMEOUT_S)
            except (RayError, asyncio.TimeoutError) as error:
                logger.warning("runner of %s did not shut down cleanly: %s", self._engine_id, error)
            ray.kill(self._runner)


def _host(config: LLMConfig, num_gpus: float) -> EngineHost:
    """Of an engine on this node: on the CPU it computes with as many cores as it has threads, else one plans a device's steps."""
    cores = usable_cores()
    is_elsewhere = num_gpus > 0 or config.device == "simulated"
    return EngineHost(cores, 1 if is_elsewhere else min(cores, config.num_threads or cores))


async def _runner_log(runner: Any) -> str:
    """File to which a runner of this node writes its log; what is known of its name where it cannot be found."""
    pid, folder = (await runner.stats.remote())["pid"], session_logs()
    name = f"worker-*-{pid}.err"
    found = sorted(Path(folder).glob(name)) if folder else []
    return str(found[-1]) if found else name


def application_name() -> str:
    """Of the Serve application that this process belongs to."""
    return serve.get_replica_context().app_name


def runner_names() -> str:
    """What the names of this process's application's runner actors begin with; the engine's id follows."""
    return f"{RUNNER_NAME_PREFIX}{application_name()}::"


def find_runner(engine_id: str) -> Any:
    """The runner of an engine of this process's application; ValueError if there is none."""
    return ray.get_actor(runner_names() + engine_id)


def _runner_bundle():
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = get_current_placement_group()
    return (
        PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=1) if group else "DEFAULT"
    )
