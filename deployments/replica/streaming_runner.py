"""The runner actor as it is deployed: tokens also leave through a Unix socket, and its replica's calls come through another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal

import ray

from actors.engine_actor import RunnerActor
from actors.model_files.peers.replies import Peers
from cluster.config import EngineConfig
from cluster.observability.start_stages import StartStages
from cluster.outputs import EngineInfo
from cluster.process.process_liveness import PeerProcess
from cluster.process.silence_clock import TICK_S, SilenceClock
from deployments.replica.ray_peers import RayPeers
from deployments.replica.runner_calls import CallSocket
from deployments.replica.token_socket import TokenSocket
from deployments.spares.engine_processes import model_label
from deployments.spares.process_hook import adopted

logger = logging.getLogger("bireme.runner")

_EXIT_DELAY_S = 0.2


class StreamingRunner(RunnerActor):
    """A RunnerActor with a second way to attach, for subscribers on the same machine, that lives and dies with its replica."""

    def __init__(self, config: EngineConfig, engine_id: str, stages: StartStages | None = None) -> None:
        adopted()
        super().__init__(config, engine_id, stages, self._peers, self._exit_soon)
        self._socket = TokenSocket(self)
        self._calls: CallSocket | None = None
        self._replica_clock = SilenceClock()
        self._replica: PeerProcess | None = None
        self._guard: asyncio.Task | None = None

    def __repr__(self) -> str:
        """What Ray's dashboard calls the actor, and its logs at the terminal."""
        gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
        return f"runner {model_label(self.config)} {'gpu' + '+'.join(gpus) if gpus else 'cpu'}"

    async def start(self) -> EngineInfo:
        """As RunnerActor; opens the sockets too."""
        info = await super().start()
        await self._socket.open()
        self._calls = CallSocket(self.generate, self.serving.requests.ahead.take, self.serving.requests.abort)
        await self._calls.open(self._call_path)
        return info

    def _peers(self) -> Peers:
        name = ray.get_runtime_context().get_actor_name()
        return RayPeers(name.removesuffix(self.engine_id), self.engine_id)

    async def ping(self, replica_pid: int) -> int:
        """A sign of life of the engine replica, and one in return: this process's id. Raises when the engine hangs.

        The replica must be on this node. From the first call on, its silence for ``hang_timeout_s`` ends both processes: a
        replica that hangs would go on drawing requests, and nobody else notices it as soon.
        """
        self._replica_clock.heard()
        if self._guard is None:
            self._replica = PeerProcess(replica_pid)
            self._guard = asyncio.get_running_loop().create_task(self._watch_replica(self._replica))
        await self.check_health()
        return os.getpid()

    async def _watch_replica(self, replica: PeerProcess) -> None:
        while self._replica_clock.tick() <= self.config.hang_timeout_s:
            if replica.has_ended():
                logger.error("the replica of %s has ended; so does its runner", self.engine_id)
                self._exit_soon()
                return
            await asyncio.sleep(TICK_S)
        logger.error("the replica of %s hangs; both processes end", self.engine_id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(replica.pid, signal.SIGKILL)
        self._exit_soon()

    async def stats(self) -> dict:
        """As RunnerActor; also this node's address and the name of its log's file; the replica's process id, 0 before
        its first ping, and how long it has been silent, in seconds."""
        replica = {
            "node_ip": ray.util.get_node_ip_address(),
            "log": f"worker-*-{os.getpid()}.err",
            "replica_pid": self._replica.pid if self._replica else 0,
            "replica_silent_s": self._replica_clock.silent_s,
        }
        return {**await super().stats(), **replica}

    async def node_id(self) -> str:
        """Ray's id of this node."""
        return ray.get_runtime_context().get_node_id()

    async def token_socket(self) -> tuple[str, str]:
        """(Ray node id, path of the socket on that node)."""
        return ray.get_runtime_context().get_node_id(), self._socket.path

    @property
    def _call_path(self) -> str:
        return os.path.join(os.path.dirname(self._socket.path), "c")

    async def call_socket(self) -> str:
        """Path of the socket for calls, on this node."""
        return self._call_path

    def _exit_soon(self) -> None:
        # What was put on streams and replies still leaves; then Ray tells every caller that the actor died.
        asyncio.get_running_loop().call_later(_EXIT_DELAY_S, os._exit, 1)

    async def shutdown(self) -> None:
        """As RunnerActor; closes the sockets too."""
        if self._guard is not None:
            self._guard.cancel()
        if self._calls is not None:
            self._calls.close()
        await self._socket.close()
        await super().shutdown()
