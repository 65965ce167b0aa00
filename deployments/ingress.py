"""The Serve deployment that speaks HTTP: routes, authentication, and the way from a request to an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from actors.engine.memory_plan import expected_max_model_len
from actors.model_files.config import load_model_config
from actors.model_files.source import ModelSource
from actors.text.tokenizer import load_tokenizer
from cluster import __version__
from cluster.api_errors import ApiError, unavailable
from cluster.client.resumable import RESUMABLE_HEADER
from cluster.config import Autoscaling, LLMConfig
from cluster.errors import BiremeError
from cluster.observability.request_trace import trace_id_of
from cluster.outputs import EngineLoad, ServedModel
from cluster.process.cpu_share import CpuShare
from cluster.process.logs import guard_logs
from cluster.process.silence_clock import TICK_S
from cluster.scaling.ingresses import most_ingresses
from deployments.admin.cluster_status import cluster_status, happened_in
from deployments.admin.engine_timeline import engine_timeline
from deployments.admin.metrics_text import metrics_text
from deployments.admin.node_metrics import CONTENT_TYPE, NodeMetrics
from deployments.admin.siblings import Happened, Siblings
from deployments.answers.event_stream import EventStream
from deployments.answers.generation import Generation
from deployments.answers.request_line import RequestLines
from deployments.answers.whole_answer import WholeAnswer
from deployments.autoscaling.held_requests import HeldRequests
from deployments.autoscaling.ingress_policy import CPU_SHARE, MOST
from deployments.autoscaling.report_publisher import ReportPublisher
from deployments.autoscaling.store import ScalingStore
from deployments.http.body import default_body_bytes, read_body
from deployments.http.connection import ClientGoneError, Peer, while_connected
from deployments.http.errors import ERROR_HANDLERS, error_response
from deployments.http.gate import gate
from deployments.http.json_response import JsonResponseInPieces
from deployments.http.keys import ApiKeys
from deployments.http.large_requests import large_requests
from deployments.http.server.room import tell_room
from deployments.http.server.set_up import set_up_http_servers
from deployments.http.server.short_way import open_short_way
from deployments.http.straight_paths import Handler, StraightPaths
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.vllm_text import VllmFamilies, VllmMetrics
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.answers.answer import OpenAiResponse, model_object
from deployments.openai_api.answers.event_ids import LAST_EVENT_ID_HEADER
from deployments.openai_api.openapi import PAGE_HEADERS, Endpoint, docs_page, openapi
from deployments.openai_api.requests.chat_prompt import ChatPrompts
from deployments.openai_api.requests.protocol import ChatCompletionRequest, CompletionRequest
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.requests.sampling_defaults import sampling_defaults
from deployments.openai_api.resume import max_resume_bytes, wants_event_ids
from deployments.openai_api.service import Caller, OpenAiService
from deployments.openai_api.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeEndpoints,
    TokenizePromptRequest,
    TokenizeResponse,
)
from deployments.ray_private.direct_requests import DirectRequests
from deployments.ray_private.serve import by_value, have_controller_look, on_this_loop, request_id
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

logger = logging.getLogger("ray.serve")

Start = Callable[[OpenAiService, Any, Caller], Awaitable[tuple[Generation, OpenAiResponse]]]

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_LOADING_PATIENCE_S = 30.0
_RECORD_S = 1.0
_STATUS_PATIENCE_S = 10.0
# The Python clients leave a server from which nothing comes.
_STREAM_STATUS_PATIENCE_S = 1.5


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
        self._created = int(time.time())
        self._metrics = NodeMetrics()
        self._openapi: dict[str, Any] | None = None
        self._service: OpenAiService | None = None
        self._application: ASGIApp | None = None
        self._choices = choices_of(engines.app_name, engines.deployment_name)
        self._turns = Turns()
        self._client: EngineClient | None = None
        self._starting: asyncio.Task | None = None
        self._recording: asyncio.Task | None = None
        self._spares = SpareKeepers(processes, config.warm_spares) if processes else None
        self._keeping: asyncio.Task | None = None
        self._reporting: asyncio.Task | None = None
        self._sharing: asyncio.Task | None = None
        self._siblings = Siblings()
        self._cpu = CpuShare()  # from now on: what the start took says nothing of the load

    def __serve_build_asgi_app__(self) -> ASGIApp:
        endpoints = self._endpoints
        app = Starlette(
            routes=[Route(endpoint.path, endpoint.handler, methods=list(endpoint.methods)) for endpoint in endpoints],
            exception_handlers=ERROR_HANDLERS,
            lifespan=self._lifespan,
        )
        open_paths = [endpoint.path for endpoint in endpoints if not endpoint.needs_key]
        straight = StraightPaths(app, self._generating)
        gated = gate(straight, self._keys, open_paths, self._config.allowed_origins, self._without_key)
        self._application = gated
        return gated

    @property
    def _generating(self) -> dict[str, Handler]:
        return {_COMPLETIONS: self.completions, _CHAT: self.chat_completions}

    def _without_key(self, path: str, error: ApiError) -> None:
        if path in (_COMPLETIONS, _CHAT):
            self._lines.refused(request_id(), path, error)

    @property
    def _endpoints(self) -> list[Endpoint]:
        engine = {"engine": "its id; may be left out where there is one", "steps": "so many", "timeout_s": "at most"}
        only = {"only": "bireme, vllm or ray, or several of them with commas"}
        generated = "application/json", "text/event-stream"
        return [
            Endpoint(_COMPLETIONS, self.completions, ["POST"], [CompletionRequest], content=generated),
            Endpoint(_CHAT, self.chat_completions, ["POST"], [ChatCompletionRequest], content=generated),
            Endpoint("/v1/models", self.models),
            Endpoint("/v1/models/{model_id:path}", self.model),
            Endpoint(
                "/tokenize", self.tokenize, ["POST"], [TokenizePromptRequest, TokenizeChatRequest], TokenizeResponse
            ),
            Endpoint("/detokenize", self.detokenize, ["POST"], [DetokenizeRequest], DetokenizeResponse),
            Endpoint("/tokenizer_info", self.tokenizer_info),
            Endpoint("/health", self.health, needs_key=False),
            Endpoint("/ping", self.ping, ["GET", "POST"], needs_key=False),
            Endpoint("/version", self.version),
            Endpoint("/load", self.load),
            Endpoint("/metrics", self.metrics, content=["text/plain"], query=only),
            Endpoint("/v1/status", self.status),
            Endpoint("/v1/timeline", self.timeline, query=engine),
            Endpoint("/v1/traces/{id:path}", self.trace),
            Endpoint("/openapi.json", self.openapi),
            Endpoint("/docs", self.docs, content=["text/html"]),
        ]

    def _lifespan(self, app: Starlette) -> _Lifespan:
        return _Lifespan(self)

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
        self._starting = asyncio.create_task(self._connect(self._client))
        self._recording = asyncio.create_task(self._record_load(self._client))
        client, application = self._client, application_name()
        # What it would not hold without an engine is another one's part.
        tell_room(lambda: client.most_held)
        open_store = lambda: ScalingStore(application)  # noqa: E731
        if config.autoscaling is not None:
            report = ReportPublisher(client.subscriber, client.inputs, self._in_force, open_store)
            self._reporting = asyncio.create_task(report.run())
        if config.autoscaling is not None or not config.engine_counts[0]:
            held = HeldRequests(client.subscriber, lambda: client.num_held, client.may_hold, open_store)
            self._sharing = asyncio.create_task(held.run())
        if self._spares is not None:
            self._keeping = asyncio.create_task(self._spares.keep())

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
        for task in (self._starting, self._recording, self._keeping, self._reporting, self._sharing):
            if task is not None:
                task.cancel()
        if self._client is not None:
            await self._client.close()
            self._client.metrics.tell()

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
        limits = ModelLimits(model.max_model_len, model.vocab_size)
        if self._service is not None:
            self._service.set_limits(limits)
            return
        self._service = OpenAiService(
            client,
            self._tokenizer,
            model.model_id,
            limits,
            self._config.max_choices,
            ChatPrompts(
                self._tokenizer,
                self._config.special_tokens_in_messages == "text",
                self._config.trust_request_chat_template,
                self._config.trust_request_documents,
            ),
            defaults=self._defaults,
            unknown_fields=self._config.unknown_fields,
            lines=self._lines,
            formats=AnswerFormats(self._tokenizer, self._config.tool_call_parser, self._config.reasoning_parser),
            aliases=self._config.model_aliases,
        )
        if self._application is not None:  # who comes before waits as Serve has it, which notices that he leaves
            open_short_way(DirectRequests(self._application, self._generating))
        shown = " ".join(f"{name}={value}" for name, value in self._defaults.shown().items())
        logger.info("sampling defaults of %s: %s (from %s)", model.model_id, shown or "none", self._defaults.where)
        terminal_logger().info(ready_line(self._service.model_id, self._keys.required))

    def _expected_model(self, source: ModelSource) -> ServedModel:
        config, model = self._config, load_model_config(source)
        max_model_len = expected_max_model_len(config, model.max_position_embeddings)
        return ServedModel(config.model_id or source.name, max_model_len, model.vocab_size)

    async def health(self, request: Request) -> Response:
        """200 once requests can be served; the status is "asleep" where the next one has to start an engine."""
        if self._service is None:
            return JSONResponse({"status": "loading"}, 503, {"Retry-After": "2"})
        return JSONResponse({"status": "ok" if self._choices.engines or self._expected is None else "asleep"})

    async def metrics(self, request: Request) -> Response:
        """What the engines, this ingress and the processes of this node measured, as Prometheus reads it."""
        text = await metrics_text(self._metrics, self._vllm_families().text, request.query_params.get("only"))
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def _vllm_families(self) -> VllmFamilies:
        client, service = self._client, self._service
        if client is None or service is None:
            return VllmFamilies()
        inputs = client.inputs()
        loads = {view.engine_id: view.load for view in inputs.engines}
        totals, name = client.metrics.totals, client.subscriber
        block_size = self._config.block_size
        metrics = VllmMetrics(service.model_id, loads, block_size, name, totals, inputs.ingress.num_held)
        return VllmFamilies(list(metrics.collect()))

    async def status(self, request: Request) -> Response:
        """Every engine of this application with what it holds, and what happened to requests in its ingresses."""
        assert self._client is not None
        return JSONResponse(await cluster_status(self._client, self._siblings, self._spares))

    async def happened_here(self) -> Happened | None:
        """What this ingress itself counted; called by its siblings."""
        return happened_in(self._client) if self._client is not None else None

    async def timeline(self, request: Request) -> Response:
        """What an engine and its device do in the next steps, as a Chrome trace."""
        return Response(await engine_timeline(request.query_params), media_type="application/json")

    async def trace(self, request: Request) -> Response:
        """The way of a request that an ingress of this application had lately, by the id of its answer or of its trace."""
        service, name, tenant = await self._ready(), request.path_params["id"], request.state.tenant
        found = service.traces.of(name, tenant.id) or await self._siblings.find_trace(name, tenant.id)
        return JSONResponse(found)

    async def trace_here(self, name: str, tenant_id: str) -> dict[str, Any] | None:
        """What this ingress itself knows; called by its siblings."""
        return self._service.traces.of(name, tenant_id) if self._service is not None else None

    async def ping(self, request: Request) -> Response:
        """As /health."""
        return await self.health(request)

    async def version(self, request: Request) -> Response:
        """The version of Bireme."""
        return JSONResponse({"version": __version__})

    async def load(self, request: Request) -> Response:
        """How many sequences this ingress has under way."""
        assert self._client is not None
        return JSONResponse({"server_load": self._client.num_running})

    async def openapi(self, request: Request) -> Response:
        """This API for programs, in OpenAPI."""
        return JSONResponse(self._document(request.scope.get("root_path", "")))

    async def docs(self, request: Request) -> Response:
        """This API for people, as a page that loads nothing."""
        return HTMLResponse(docs_page(self._document(request.scope.get("root_path", ""))), headers=PAGE_HEADERS)

    def _document(self, prefix: str) -> dict[str, Any]:
        if self._openapi is None:
            unknown_fields = self._config.unknown_fields
            self._openapi = openapi(self._endpoints, __version__, prefix, self._keys.required, unknown_fields)
        return self._openapi

    async def tokenizer_info(self, request: Request) -> Response:
        """The tokenizer's configuration: special tokens, chat template, added tokens."""
        return JSONResponse(TokenizeEndpoints(await self._ready()).info())

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a prompt or of a chat's messages."""
        return await self._transcode(request, TokenizeEndpoints.tokenize)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        return await self._transcode(request, TokenizeEndpoints.detokenize)

    async def _transcode(
        self, request: Request, work: Callable[[TokenizeEndpoints, bytearray, Peer], Awaitable[list[bytes]]]
    ) -> Response:
        endpoints = TokenizeEndpoints(await self._ready())
        peer = Peer.of(request.scope, request.receive, request.state.tenant)
        with large_requests.holding(peer.name) as holding:
            try:
                body = await read_body(request, self._max_body_bytes, holding)
                pieces = await work(endpoints, body, peer)
            except (ClientDisconnect, ClientGoneError):
                return error_response(_departed())
        return JsonResponseInPieces(pieces)

    async def models(self, request: Request) -> Response:
        """The one model of this application, under each of its names."""
        service = await self._ready()
        models = [self._model_object(service, name) for name in service.model_names]
        return JSONResponse({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        """The model by name."""
        service = await self._ready()
        name = request.path_params["model_id"]
        service.check_model(name)
        return JSONResponse(self._model_object(service, name))

    async def completions(self, request: Request) -> Response:
        """A completion, whole or as a stream of events."""
        return await self._generate(request, _COMPLETIONS, OpenAiService.completion)

    async def chat_completions(self, request: Request) -> Response:
        """The next message of a chat, whole or as a stream of events."""
        return await self._generate(request, _CHAT, OpenAiService.chat)

    async def _generate(self, request: Request, endpoint: str, start: Start) -> Response:
        try:
            peer, resumable, started = await self._begin(request, start)
        except ApiError as error:
            self._lines.refused(request_id(), endpoint, error)
            raise
        return await _answer(peer, *started, resumable)

    async def _begin(self, request: Request, start: Start) -> tuple[Peer, bool, tuple[Generation, OpenAiResponse]]:
        service = await self._ready()
        await self._turns.begin()
        max_bytes = self._max_body_bytes
        tenant, last_event_id = request.state.tenant, request.headers.get(LAST_EVENT_ID_HEADER)
        resumable = wants_event_ids(request.headers.get(RESUMABLE_HEADER), last_event_id)
        peer = Peer.of(request.scope, request.receive, tenant)
        trace_id = trace_id_of(request.headers.get("traceparent"))
        caller = Caller(tenant, peer, service.resume_point(last_event_id, tenant), resumable, trace_id, request_id())
        max_bytes += max_resume_bytes(caller.resumed, self._config.max_choices, service.limits.max_model_len)
        # The words that client libraries know an overflow by.
        hint = f"This model's maximum context length is {service.limits.max_model_len} tokens"
        with large_requests.holding(peer.name) as holding:
            try:
                body = await read_body(request, max_bytes, holding, hint=hint)
                return peer, resumable, await start(service, body, caller)
            except (ClientDisconnect, ClientGoneError):
                raise _departed() from None

    @property
    def _max_body_bytes(self) -> int:
        assert self._service is not None
        max_model_len = self._service.limits.max_model_len
        return self._config.max_prompt_bytes or default_body_bytes(max_model_len, self._config.max_choices)

    async def _ready(self) -> OpenAiService:
        """The service. A new ingress gets requests at once, also in an update under load, so they wait for it a while."""
        if self._service is None and self._starting is not None:
            await asyncio.wait((self._starting,), timeout=_LOADING_PATIENCE_S)
        if self._service is None:
            raise unavailable("the model is still loading", code="loading")
        return self._service

    def _model_object(self, service: OpenAiService, name: str) -> dict:
        shown = service.defaults.shown()
        return model_object(name, self._created, service.limits.max_model_len, shown)


async def _answer(peer: Peer, generation: Generation, answer: OpenAiResponse, resumable: bool) -> Response:
    response: Response | None = None
    try:
        patience_s = _STREAM_STATUS_PATIENCE_S if answer.request.stream else _STATUS_PATIENCE_S
        # Awaited before the status is sent, so that a refusal by the engine gets its own; not for long, so that a client in a
        # long queue sees a sign of life.
        first = await while_connected(peer.receive, generation.read(patience_s))
        # A status is a promise: a full queue is no reason to break it.
        generation.accept()
        if answer.request.stream:
            response = EventStream(generation, answer, first, resumable, peer.name)
        else:
            response = WholeAnswer(generation, answer, peer.name)
        return response
    except ClientGoneError:
        return error_response(_departed())
    finally:
        if response is None:
            generation.close()


class _Lifespan:
    def __init__(self, ingress: OpenAiIngress) -> None:
        self._ingress = ingress

    async def __aenter__(self) -> None:
        await self._ingress.start()

    async def __aexit__(self, *error: object) -> None:
        await self._ingress.stop()


def _departed() -> ApiError:
    """For nobody, mostly. Where a proxy lost the way to a client that is still there, it asks again: nothing was begun."""
    return ApiError(499, "the client has left before its answer began", code="request_lost")
