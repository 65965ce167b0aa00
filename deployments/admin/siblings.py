"""What one ingress asks all ingresses of its application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.api_errors import ApiError, overloaded, shown, unavailable
from deployments.ray_private.serve import answers_of_each, handle_of_this_deployment, on_this_loop

_PATIENCE_S = 2.0
_EVENTS_PATIENCE_S = 1.0
# Each question goes to every ingress: names that nobody knows are to be no load for all of them.
_MOST_AT_ONCE = 4


class Happened(NamedTuple):
    """What happened to requests in one ingress since it started (``RequestEvents``)."""

    ingress: str
    counts: dict[str, int]
    recoveries: dict[str, float]


class Siblings:
    """All ingresses of the application that this process belongs to. Belongs to one event loop."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle | None = None  # made by the first question: most ingresses are never asked one
        self._num_asking = 0
        self._counting: asyncio.Task[list[Happened]] | None = None

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
        handle = self._own_deployment()
        try:
            answers, num_silent = await answers_of_each(handle, "trace_here", name, tenant_id, timeout_s=_PATIENCE_S)
        except (asyncio.TimeoutError, RayServeException) as error:
            raise unavailable(f"Ray Serve does not say which ingresses there are: {type(error).__name__}") from None
        for found in filter(None, answers):
            return found
        why = f"no ingress knows request {shown(name)} of this API key; each remembers its newest"
        if num_silent:
            why += f" ({num_silent} of {len(answers) + num_silent} did not answer)"
        raise ApiError(404, why, param="id", code="trace_not_found")

    async def happened(self, own: Happened, replicas: Mapping[str, Mapping[str, int]]) -> tuple[list[Happened], int]:
        """What each ingress has counted, ``own`` first, and how many of those that run did not say so in time.

        Args:
            replicas: how many there are of each deployment, by state. One ingress alone asks nobody.
        """
        states = replicas.get(self._own_deployment().deployment_name, {})
        # One that ends, this one perhaps, is in another state and still counts.
        if sum(states.values()) <= 1:
            return [own], 0
        # Whoever asks meanwhile gets the same answer: status is asked again and again.
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._count())
        others = [found for found in await asyncio.shield(self._counting) if found.ingress != own.ingress]
        return [own, *others], max(0, states.get("RUNNING", 1) - 1 - len(others))

    async def _count(self) -> list[Happened]:
        try:
            answers, _ = await answers_of_each(self._own_deployment(), "happened_here", timeout_s=_EVENTS_PATIENCE_S)
        except (asyncio.TimeoutError, RayServeException):
            return []
        return [found for found in answers if found is not None]

    def _own_deployment(self) -> DeploymentHandle:
        if self._handle is None:
            self._handle = on_this_loop(handle_of_this_deployment())
        return self._handle
