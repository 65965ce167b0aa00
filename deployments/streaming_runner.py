"""The runner actor as it is deployed: its tokens also leave through a Unix socket."""

from __future__ import annotations

import asyncio
import os

import ray

from actors.runner_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.outputs import EngineInfo
from deployments.token_socket import TokenSocket

_EXIT_DELAY_S = 0.2


class StreamingRunner(RunnerActor):
    """A RunnerActor with a second way to attach, for subscribers on the same machine."""

    def __init__(self, config: EngineConfig, engine_id: str) -> None:
        super().__init__(config, engine_id)
        self._socket = TokenSocket(self.attach)

    async def start(self) -> EngineInfo:
        """As RunnerActor; opens the socket too."""
        info = await super().start()
        await self._socket.open()
        return info

    async def token_socket(self) -> tuple[str, str]:
        """(Ray node id, path of the socket on that node)."""
        return ray.get_runtime_context().get_node_id(), self._socket.path

    def _after_engine_death(self) -> None:
        # What was put on streams and replies still leaves; then Ray tells every caller that the actor died.
        asyncio.get_running_loop().call_later(_EXIT_DELAY_S, os._exit, 1)

    async def shutdown(self) -> None:
        """As RunnerActor; closes the socket too."""
        await self._socket.close()
        await super().shutdown()
