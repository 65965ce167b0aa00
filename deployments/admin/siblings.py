"""What one ingress asks all ingresses of its application."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.api_errors import ApiError, overloaded, shown, unavailable
from deployments.ray_private.serve import answers_of_each, handle_of_this_deployment, on_this_loop

_PATIENCE_S = 2.0
# Each question goes to every ingress: names that nobody knows are to be no load for all of them.
_MOST_AT_ONCE = 4


class Siblings:
    """All ingresses of the application that this process belongs to. Belongs to one event loop."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle | None = None  # made by the first question: most ingresses are never asked one
        self._num_asking = 0

    async def find_trace(self, name: str, tenant_id: str) -> dict[str, Any]:
        """The way of a request as the ingress that had it tells it (``RequestTraces.of``).

        Raises:
            ApiError: 404, none has it; 429, so many are being looked for already; 503, Serve does not say in time which ingresses
                there are.
        """
        if self._num_asking >= _MOST_AT_ONCE:
            raise overloaded(
                f"{self._num_asking} traces are being looked for in other ingresses, the limit is {_MOST_AT_ONCE}"
            )
        self._num_asking += 1
        try:
            return await self._find_trace(name, tenant_id)
        finally:
            self._num_asking -= 1

    async def _find_trace(self, name: str, tenant_id: str) -> dict[str, Any]:
        if self._handle is None:
            self._handle = on_this_loop(handle_of_this_deployment())
        try:
            answers, num_silent = await answers_of_each(
                self._handle, "trace_here", name, tenant_id, timeout_s=_PATIENCE_S
            )
        except (asyncio.TimeoutError, RayServeException) as error:
            raise unavailable(f"Ray Serve does not say which ingresses there are: {type(error).__name__}") from None
        for found in filter(None, answers):
            return found
        why = f"no ingress knows request {shown(name)} of this API key; each remembers its newest"
        if num_silent:
            why += f" ({num_silent} of {len(answers) + num_silent} did not answer)"
        raise ApiError(404, why, param="id", code="trace_not_found")
