"""The Serve deployment that speaks HTTP: what it loads, what runs beside its endpoints, and what Serve asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.types import ASGIApp

from actors.engine.memory_plan import expected_max_model_len
from actors.model_files.config import load_model_config
from actors.model_files.source import ModelSource
from actors.text.tokenizer import load_tokenizer
from cluster.config import Autoscaling, LLMConfig
from cluster.errors import BiremeError
from cluster.outputs import EngineLoad, ServedModel
from cluster.process.cpu_share import CpuShare
from cluster.process.logs import guard_logs
from cluster.process.silence_clock import TICK_S
from cluster.scaling.ingresses import most_ingresses
from deployments.admin.cluster_status import happened_in
from deployments.admin.siblings import Happened, Siblings
from deployments.answers.request_line import RequestLines
from deployments.autoscaling.held_requests import HeldRequests
from deployments.autoscaling.ingress_policy import CPU_SHARE, MOST
from deployments.autoscaling.report_publisher import ReportPublisher
from deployments.autoscaling.store import ScalingStore
from deployments.endpoints.application import IngressApplication
from deployments.endpoints.generating import GeneratingEndpoints
from deployments.endpoints.model_endpoints import ModelEndpoints
from deployments.endpoints.model_service import ModelService, limits_of, service_of
from deployments.endpoints.operator_endpoints import OperatorEndpoints
from deployments.http.keys import ApiKeys
from deployments.http.server.room import tell_room
from deployments.http.server.set_up import set_up_http_servers
from deployments.http.server.short_way import open_short_way
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.openai_api.requests.sampling_defaults import sampling_defaults
from deployments.ray_private.direct_requests import DirectRequests
from deployments.ray_private.serve import by_value, have_controller_look, on_this_loop
from deployments.replica.engine_replica import application_name, find_runner, runner_names
from deployments.replica.ray_peers import RayPeers, find_beside_an_event_loop
from deployments.replica.replica_port import listen_where_the_node_does
from deployments.routing.engine_client import EngineClient
from deployments.routing.router.engine_choices import choices_of
from deployments.routing.waiting.turns import Turns
from deployments.spares.engine_processes import EngineProcesses
from deployments.spares.keepers import SpareKeepers
from deployments.start.console import cannot_start, terminal_logger
from deployments.start.ready_line import ready_line
from deployments.start.run_files.cluster_secret import cluster_secret
from deployments.start.run_files.session_logs import tidy_session_logs

_RECORD_S = 1.0


class OpenAiIngress:
    """OpenAI-compatible HTTP in front of the engines. Holds no Paddle and no weights, only the tokenizer."""

    def __init__(
        self,
        config: LLMConfig,
        engines: DeploymentHandle,
        key_digests: Sequence[bytes] = (),
        processes: EngineProcesses | None = None,
    ) -> None:
        """Load the tokenizer.

        Args:
            key_digests: of API keys, where they came from Python.
            processes: of the engines, for spares.

        Raises:
            RuntimeError: the model has none that can be loaded, or where API keys are to be found there is no usable one; one
                sentence that says why.
        """
        listen_where_the_node_does()
        set_up_http_servers()
        tidy_session_logs()
        guard_logs("ray.serve")
        self._config = config
        # Where replies travel through Ray, a caller that hangs holds up the replies of its engine to everybody else, too.
        self._engines = by_value(on_this_loop(engines))
        try:
            source = find_beside_an_event_loop(config, RayPeers(runner_names()))
            self._tokenizer = load_tokenizer(source)
            self._defaults = sampling_defaults(config, source)
            # Where there may be no engine, requests are what starts one; until then its files say what the model takes.
            self._expected = self._expected_model(source) if config.engine_counts[0] == 0 else None
            self._tokenizer.floor  # noqa: B018 (made now, when nobody waits)
            self._keys = ApiKeys.configured(
                file=config.api_keys_file,
                digests=key_digests,
                secret=lambda: cluster_secret(application_name()),
                share_prefix_cache=config.share_prefix_cache,
            )
        except BiremeError as error:
            raise cannot_start(error.message) from None
        self._lines = RequestLines(config.model_id or source.name, config.request_log)
        self._choices = choices_of(engines.app_name, engines.deployment_name)
        self._turns = Turns()
        self._client: EngineClient | None = None
        self._spares = SpareKeepers(processes, config.warm_spares) if processes else None
        self._tasks: list[asyncio.Task] = []
        self._siblings = Siblings()
        self._model = ModelService(config.max_choices, config.max_prompt_bytes)
        self._application = self._with_endpoints()
        self._built: ASGIApp | None = None
        self._cpu = CpuShare()  # from now on: what the start took says nothing of the load

    def _with_endpoints(self) -> IngressApplication:
        return IngressApplication(
            GeneratingEndpoints(self._model, self._turns, self._lines),
            ModelEndpoints(self._model),
            OperatorEndpoints(
                self._model,
                lambda: self._client,
                lambda: not self._choices.engines and self._expected is not None,
                self._siblings,
                self._spares,
                self._config.block_size,
            ),
            self._keys,
            self._config.unknown_fields,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self._built = self._application.build(self._config.allowed_origins, self._lifespan)
        return self._built

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Begin to wait for an engine; requests before that get 503, where there is to be one."""
        config = self._config
        idle_room = EngineLoad(config.max_num_seqs + config.max_queued_requests, config.max_queued_requests)
        self._client = EngineClient(
            self._engines,
            self._choices,
            config.max_attempts,
            config.hang_timeout_s,
            idle_room,
            config.max_queue_share,
            max(1, config.engine_counts[1]),
            IngressMetrics(*config.latency_targets_s),
            lambda: have_controller_look(self._engines),
            self._spares.prepare_first if self._spares else None,
            self._turns,
        )
        self._client.attach_early(find_runner)
        if self._expected is not None:
            self._serve(self._client, self._expected)
        self._run(self._connect(self._client))
        self._run(self._record_load(self._client))
        client, application = self._client, application_name()
        # What it would not hold without an engine is another one's part.
        tell_room(lambda: client.most_held)
        open_store = lambda: ScalingStore(application)  # noqa: E731
        if config.autoscaling is not None:
            report = ReportPublisher(client.subscriber, client.inputs, self._in_force, open_store)
            self._run(report.run())
        if config.autoscaling is not None or not config.engine_counts[0]:
            held = HeldRequests(client.subscriber, lambda: client.num_held, client.may_hold, open_store)
            self._run(held.run())
        if self._spares is not None:
            self._run(self._spares.keep())

    def _in_force(self, settings: Autoscaling, signal_age_s: float) -> None:
        assert self._client is not None
        self._client.metrics.record_age("scaling", signal_age_s)
        self._client.may_be(settings.max_replicas)
        config, tpot_s = self._config, settings.slo_tpot_ms / 1e3
        self._client.metrics.aim(config.ttft_target_s or settings.slo_ttft_s, config.tpot_target_s or tpot_s)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks for, where the number of ingresses follows the load: what this process uses, and how many may be."""
        said = {CPU_SHARE: self._cpu.look(), MOST: most_ingresses(self._choices.hosts)}
        return {name: float(value) for name, value in said.items() if value is not None}

    async def stop(self) -> None:
        """Cancel what runs and detach from the engines."""
        for task in self._tasks:
            task.cancel()
        if self._client is not None:
            await self._client.close()
            self._client.metrics.tell()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _record_load(self, client: EngineClient) -> None:
        while True:
            inputs = client.inputs()
            client.metrics.record(inputs.ingress)
            client.metrics.record_age("routing", max((engine.age_s for engine in inputs.engines), default=0.0))
            await asyncio.sleep(_RECORD_S)

    async def _connect(self, client: EngineClient) -> None:
        # The router hears of engines by itself; to ask one would start one.
        while self._choices.model is None or not self._choices.engines:
            await asyncio.sleep(TICK_S)
        self._serve(client, self._choices.model)

    def _serve(self, client: EngineClient, model: ServedModel) -> None:
        """Requests are taken from now on, within the limits of ``model``."""
        if self._model.now is not None:
            self._model.now.set_limits(limits_of(model))
            return
        service = service_of(self._config, client, self._tokenizer, self._defaults, self._lines, model)
        self._model.known(service)
        if self._built is not None:  # who comes before waits as Serve has it, which notices that he leaves
            open_short_way(DirectRequests(self._built, self._application.straight))
        terminal_logger().info(ready_line(service.model_id, self._keys.required))

    def _expected_model(self, source: ModelSource) -> ServedModel:
        config, model = self._config, load_model_config(source)
        max_model_len = expected_max_model_len(config, model.max_position_embeddings)
        return ServedModel(config.model_id or source.name, max_model_len, model.vocab_size)

    async def happened_here(self) -> Happened | None:
        """What this ingress itself counted; called by its siblings."""
        return happened_in(self._client) if self._client is not None else None

    async def trace_here(self, name: str, tenant_id: str) -> dict[str, Any] | None:
        """What this ingress itself knows of a request; called by its siblings."""
        return self._model.now.traces.of(name, tenant_id) if self._model.now is not None else None
