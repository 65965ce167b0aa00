"""The application under test, on a Ray cluster of its own: one node, or several on this one machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.constants import SERVE_DEFAULT_APP_NAME
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from actors.model_files.source import resolve_model
from cluster.config import DEFAULT_MODEL, LLMConfig
from cluster.errors import EngineDeadError
from deployments.llm import build_openai_app
from deployments.replica.engine_replica import RUNNER_NAME_PREFIX
from deployments.start.run_files.run_folder import make_run_folder
from deployments.start.serve_environment import SERVE_ENVIRONMENT, WITHOUT_HAPROXY, apply_serve_environment
from tests.chaos.served.nodes import INGRESS_PLACE, STORE_BYTES, add_node
from tests.engines import TINY_CONFIG

MODEL = {**TINY_CONFIG, "vocab_size": 49152, "max_position_embeddings": 2048}
# Sizes for which a GPU's kernels are made.
GPU_MODEL = {**MODEL, "hidden_size": 128, "head_dim": 64}
# Engines share one GPU; one that leaves is still there while its successor starts.
_MORE_RUNNERS = 3
# A replica that pings its runner does so four times a second.
LIVELY_S = 0.75
_DEPLOY_TRIES = 4
CONTROLLER_BACK_S = 60.0
RPC_FAILURES = "RAY_testing_rpc_failure"


@dataclass(frozen=True)
class Setup:
    """A random two-layer model with SmolLM2's tokenizer.

    Attributes:
        num_nodes: nodes with room for one engine and one ingress each, besides the head; 0: everything on one node. Each has a
            proxy, too, and no node has two ingresses.
        tokenizer: a tokenizer.json; None: the default model's.
        rpc_failures: percent of Ray's actor calls that fail before, during and after they are carried out.
        haproxy: requests come through HAProxy, as with ``bireme serve``; clients also know the proxy that Serve keeps beside it.
        routing_policy: the setting of that name.
        max_num_seqs: slots of an engine.
        device: "gpu": all engines compute on one, whatever their batch neighbours with the same bits.
    """

    num_engines: int = 3
    num_ingresses: int = 2
    num_clients: int = 8
    max_tokens: int = 400
    num_nodes: int = 0
    rpc_failures: int = 0
    haproxy: bool = False
    tokenizer: Path | None = None
    device: str = "cpu"
    routing_policy: str = "power_of_two"
    max_num_seqs: int = 8

    def config(self, folder: Path, model: dict | None = None, **changes: object) -> LLMConfig:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(model or (MODEL if self.device == "cpu" else GPU_MODEL)))
        ingress: dict = {"num_replicas": self.num_ingresses, "health_check_period_s": 1.0}
        settings: dict = {
            "model": str(folder),
            "load_format": "dummy",
            "tokenizer": str(self.tokenizer or resolve_model(DEFAULT_MODEL).tokenizer),
            "model_id": "tiny",
            "trust_request_chat_template": True,
            "device": self.device,
            "routing_policy": self.routing_policy,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": 128,
            "num_kv_blocks": 256,
            "num_threads": 1,
            "runner_num_cpus": 0.1,
            "deployment_config": {"num_replicas": self.num_engines},
            "ingress_config": ingress,
        }
        if self.device == "gpu":
            share = round(1 / (self.num_engines + _MORE_RUNNERS), 3)
            settings |= {"batch_invariant": True, "runner_num_gpus": share, "decode_graph_memory_gb": 0.25}
        if self.num_nodes:
            ingress["ray_actor_options"] = {"num_cpus": 0.2, "resources": INGRESS_PLACE}
            settings |= {"runner_num_cpus": 0.7, "accelerator_type": "HERE"}
        return LLMConfig(**{**settings, **changes})


@dataclass
class Running:
    """The application and the nodes it is on.

    Attributes:
        url: every address that it may have, the head's first.
        nodes: all but the head.
        deploy: tells it to have so many engines, and returns at once.
        proxy_ports: where the proxies of those nodes listen, and one more, for a node that comes before another goes.
    """

    url: str = ""
    cluster: Cluster | None = None
    nodes: list[Any] = field(default_factory=list)
    proxy_ports: list[int] = field(default_factory=list)
    deploy: Callable[[int], None] | None = None
    _port_of: dict[str, int] = field(default_factory=dict)
    _ready_since: dict[int, float] = field(default_factory=dict)

    def introduced(self, ingresses: Iterable[int], after_s: float) -> list[int]:
        """Of these ingresses, by process id, those that were ready so long ago."""
        now = time.monotonic()
        return [pid for pid in ingresses if now - self._ready_since.setdefault(pid, now) >= after_s]

    def add_node(self) -> Any:
        """One more node; also from a thread. Its proxy gets a port that no other node has."""
        assert self.cluster is not None
        taken = {self._port_of[node.node_id] for node in self.nodes}
        port = next(port for port in self.proxy_ports if port not in taken)
        node = add_node(self.cluster, port)
        self._port_of[node.node_id] = port
        self.nodes.append(node)
        return node


@contextlib.contextmanager
def application(setup: Setup, folder: Path, model: dict | None = None, **changes: object) -> Iterator[Running]:
    """Run it; at the end nothing of it is left."""
    port, *others = _free_ports(setup.num_nodes + 2 if setup.num_nodes else 1)
    running = Running(",".join(f"http://127.0.0.1:{one}" for one in (port, *others)), proxy_ports=others)
    variables = SERVE_ENVIRONMENT | _rpc_failures(setup.rpc_failures)
    if not setup.haproxy:
        variables |= WITHOUT_HAPROXY
    else:
        apply_serve_environment(make_run_folder(), variables)
        assert variables.get("RAY_SERVE_ENABLE_HA_PROXY") == "1", "HAProxy's package cannot be used here"
        running.url += f",http://127.0.0.1:{variables['RAY_SERVE_FALLBACK_PROXY_HTTP_PORT']}"
    with _environment(variables), _queue_lengths_remembered(variables), _cluster(setup, running):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        _deploy(setup.config(folder, model, **changes), _DEPLOY_TRIES if setup.rpc_failures else 1)
        wait_until_healthy(f"http://127.0.0.1:{port}", 90)

        def deploy(num_engines: int) -> None:
            settings = {**changes, "deployment_config": {"num_replicas": num_engines}}
            _tell(setup.config(folder, model, **settings))

        running.deploy = deploy
        yield running


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_until_all_are_chosen:
        probes = [open_until_all_are_chosen.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _cluster(setup: Setup, running: Running) -> Iterator[None]:
    try:
        if setup.num_nodes:
            head = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            head["resources"] = INGRESS_PLACE
            running.cluster = Cluster(initialize_head=True, head_node_args=head)
            for _ in range(setup.num_nodes):
                running.add_node()
            ray.init(address=running.cluster.address, log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=8,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=STORE_BYTES,
            )
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        if running.cluster is not None:
            running.cluster.shutdown()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set what is not set yet, as a server does; other tests do without."""
    ours = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


@contextlib.contextmanager
def _queue_lengths_remembered(variables: dict[str, str]) -> Iterator[None]:
    """As in a server, which sets the variable before it imports Serve: proxies get Serve's default router from the process
    that deploys, with what that one read at the import."""
    name, defaults = "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S", ReplicaQueueLengthCache.__init__.__kwdefaults__
    before = dict(defaults)
    if name in variables:
        defaults["staleness_timeout_s"] = float(variables[name])
    try:
        yield
    finally:
        defaults.update(before)


def _rpc_failures(percent: int) -> dict[str, str]:
    """Ray's own switch, read by each of its processes as it starts; every failure is a line in that process's log."""
    if not percent:
        return {}
    each = {
        "num_failures": -1,
        "req_failure_prob": percent,
        "resp_failure_prob": percent,
        "in_flight_failure_prob": percent,
    }
    methods = ("PushTask", "ReportGeneratorItemReturns", "GetObjectStatus", "CancelTask")
    return {RPC_FAILURES: json.dumps({f"CoreWorkerService.grpc_client.{m}": each for m in methods})}


def num_rpc_failures() -> int:
    """How many calls have failed on purpose in this cluster so far."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    return sum(
        line.count(b"Inject RPC")
        for log in [*logs.glob("python-core-*.log"), *logs.glob("raylet.*"), *logs.glob("gcs_server.*")]
        for line in log.read_bytes().splitlines()
    )


def _deploy(config: LLMConfig, tries: int) -> None:
    """Calls may fail on purpose before anything runs, too, and Serve tries to start an engine of a new application only once."""
    for number in range(tries):
        try:
            serve.run(build_openai_app(config))
            return
        except RuntimeError:
            if number == tries - 1:
                raise
            serve.delete(SERVE_DEFAULT_APP_NAME)


def _tell(config: LLMConfig) -> None:
    """Deploy without waiting for what comes of it. The controller may be gone and come back."""
    target = serve.RunTarget(build_openai_app(config))
    deadline = time.monotonic() + CONTROLLER_BACK_S
    while True:
        try:
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
            return
        except ray.exceptions.RayError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def engine_states() -> dict[str, int]:
    """How many replicas of the engine deployment are in which of Serve's states; empty while nobody can say."""
    try:
        states = serve.status().applications[SERVE_DEFAULT_APP_NAME].deployments["LLMServer"].replica_states
    except (ray.exceptions.RayError, KeyError):
        return {}
    return {state.name if hasattr(state, "name") else str(state): count for state, count in states.items()}


def num_answering(urls: str) -> int:
    """Of several addresses, those under which the application answers."""
    return sum(is_healthy(url) for url in urls.split(","))


@functools.cache
def _looker() -> httpx.Client:
    """A client takes 20 ms to make, and the suite looks many times a second. A connection may be to a process that was killed."""
    return httpx.Client(timeout=5, limits=httpx.Limits(max_keepalive_connections=0))


def is_healthy(url: str) -> bool:
    try:
        return _looker().get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def wait_until_healthy(url: str, timeout_s: float) -> None:
    """Until the application answers there and is ready."""
    deadline = time.monotonic() + timeout_s
    while not is_healthy(url):
        assert time.monotonic() < deadline, f"the application is not ready at {url}"
        time.sleep(0.2)


def runners() -> list:
    """Handles of the runner actors that Ray knows."""
    named = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(RUNNER_NAME_PREFIX)
    ]
    found = []
    for actor in named:
        with contextlib.suppress(ValueError):
            found.append(ray.get_actor(actor["name"], namespace=actor["namespace"]))
    return found


def warm_engines() -> list[tuple[Any, dict]]:
    """Runners that answer at once and hear from their replica, with their counters."""
    asked = [(runner, runner.stats.remote()) for runner in runners()]
    ready, _ = ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=0.5) if asked else ([], [])
    found = []
    for runner, ref in asked:
        if ref in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                stats = ray.get(ref)
                if stats["state"] == "running" and stats["replica_silent_s"] < LIVELY_S:
                    found.append((runner, stats))
    return found


def idle_stats(num_engines: int, timeout_s: float) -> list[dict]:
    """Counters of every engine that does not leave, once there are as many as there should be, idle, and none that starts or
    leaves beside them; else the last seen. One whose accounting does not add up ends the test: it takes itself out, and its
    successor is clean."""
    deadline, stats = time.monotonic() + timeout_s, []
    while time.monotonic() < deadline:
        stats, known = [], runners()
        for runner in known:
            try:
                found = ray.get(runner.check_integrity.remote(), timeout=5)
                if found["state"] == "running":
                    stats.append(found)
            except ray.exceptions.RayTaskError as error:
                # An engine that ends, or one that is still being loaded.
                if not isinstance(error.cause, (EngineDeadError, AttributeError)):
                    raise
            except ray.exceptions.RayError:
                continue
        is_settled = len(known) == len(stats) == num_engines
        if is_settled and not any(s["num_requests_running"] + s["num_requests_waiting"] for s in stats):
            break
        time.sleep(0.5)
    return stats
