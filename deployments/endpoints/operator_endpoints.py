"""What operators and programs that watch ask an ingress: health, metrics, status, timelines and traces."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster import __version__
from deployments.admin.cluster_status import cluster_status
from deployments.admin.engine_timeline import engine_timeline
from deployments.admin.metrics_text import metrics_text
from deployments.admin.node_metrics import CONTENT_TYPE, NodeMetrics
from deployments.admin.siblings import Siblings
from deployments.endpoints.model_service import ModelService
from deployments.metrics.vllm_text import VllmFamilies, VllmMetrics
from deployments.routing.engine_client import EngineClient
from deployments.spares.keepers import SpareKeepers


class OperatorEndpoints:
    """Endpoints of one ingress, of which some ask its siblings and the engines, too.

    Args:
        client: the ingress's, once it has started.
        is_asleep: no engine runs, and the next request has to start one.
        block_size: tokens of a KV block.
    """

    def __init__(
        self,
        model: ModelService,
        client: Callable[[], EngineClient | None],
        is_asleep: Callable[[], bool],
        siblings: Siblings,
        spares: SpareKeepers | None,
        block_size: int,
    ) -> None:
        self._model = model
        self._client = client
        self._is_asleep = is_asleep
        self._siblings = siblings
        self._spares = spares
        self._block_size = block_size
        self._node = NodeMetrics()

    async def health(self, request: Request) -> Response:
        """200 once requests can be served; the status is "asleep" where the next one has to start an engine."""
        if self._model.now is None:
            return JSONResponse({"status": "loading"}, 503, {"Retry-After": "2"})
        return JSONResponse({"status": "asleep" if self._is_asleep() else "ok"})

    async def ping(self, request: Request) -> Response:
        """As /health."""
        return await self.health(request)

    async def version(self, request: Request) -> Response:
        """The version of Bireme."""
        return JSONResponse({"version": __version__})

    async def load(self, request: Request) -> Response:
        """How many sequences this ingress has under way."""
        return JSONResponse({"server_load": self._started.num_running})

    async def metrics(self, request: Request) -> Response:
        """What the engines, this ingress and the processes of this node measured, as Prometheus reads it."""
        text = await metrics_text(self._node, self.vllm_families().text, request.query_params.get("only"))
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def vllm_families(self) -> VllmFamilies:
        """What dashboards made for vLLM read; none before the model is known."""
        client, service = self._client(), self._model.now
        if client is None or service is None:
            return VllmFamilies()
        inputs = client.inputs()
        loads = {view.engine_id: view.load for view in inputs.engines}
        totals, name = client.metrics.totals, client.subscriber
        metrics = VllmMetrics(service.model_id, loads, self._block_size, name, totals, inputs.ingress.num_held)
        return VllmFamilies(list(metrics.collect()))

    async def status(self, request: Request) -> Response:
        """Every engine of this application with what it holds, and what happened to requests in its ingresses."""
        return JSONResponse(await cluster_status(self._started, self._siblings, self._spares))

    async def timeline(self, request: Request) -> Response:
        """What an engine and its device do in the next steps, as a Chrome trace."""
        return Response(await engine_timeline(request.query_params), media_type="application/json")

    async def trace(self, request: Request) -> Response:
        """The way of a request that an ingress of this application had lately, by the id of its answer or of its trace."""
        service, name, tenant = await self._model.ready(), request.path_params["id"], request.state.tenant
        found = service.traces.of(name, tenant.id) or await self._siblings.find_trace(name, tenant.id)
        return JSONResponse(found)

    @property
    def _started(self) -> EngineClient:
        client = self._client()
        assert client is not None
        return client
