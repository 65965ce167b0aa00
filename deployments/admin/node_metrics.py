"""The Prometheus text of this node, as Ray's agent has it."""

from __future__ import annotations

import asyncio

import httpx
import ray

from cluster.api_errors import ApiError, unavailable
from deployments.admin.live_series import without_dead_workers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT_S = 5.0


class NodeMetrics:
    """Fetches the metrics that processes of this node have reported; Ray's agent collects them every few seconds, and those of
    processes that are gone are left out."""

    def __init__(self) -> None:
        self._url: str | None = None

    async def text(self) -> bytes:
        """The whole text.

        Raises:
            ApiError: 503, there is no agent that answers.
        """
        if self._url is None:
            self._url = await asyncio.to_thread(_agent_url)
        try:
            # Without certificates, of which plain HTTP needs none: to read them holds up the event loop for tens of milliseconds.
            async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False, verify=False) as client:
                response = await client.get(self._url)
                response.raise_for_status()
                return await asyncio.to_thread(without_dead_workers, response.content)
        except httpx.HTTPError as error:
            self._url = None
            raise _no_metrics(f"does not answer: {type(error).__name__}") from None


def _agent_url() -> str:
    node_id = ray.get_runtime_context().get_node_id()
    node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
    if node is None or node["MetricsExportPort"] <= 0:
        raise _no_metrics("exports none")
    host = node["NodeManagerAddress"]
    return f"http://{f'[{host}]' if ':' in host else host}:{node['MetricsExportPort']}/metrics"


def _no_metrics(why: str) -> ApiError:
    return unavailable(f"Ray's metrics agent on this node {why}", code="metrics_unavailable")
