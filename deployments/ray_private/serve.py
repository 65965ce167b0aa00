"""All that this project uses of Ray's and Ray Serve's private names, as of Ray 2.60: what an update of Ray may break.

It imports Ray Serve, which reads its environment variables then.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray import serve
from ray._private import worker
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.serve import Deployment
from ray.serve._private import api as serve_api
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import ReplicaID
from ray.serve._private.constants import RAY_SERVE_FALLBACK_PROXY_HTTP_PORT
from ray.serve._private.request_router.common import ReplicaQueueLengthCache, RequestRoutingContext
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client, _get_serve_request_context
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema

# For subclasses; Serve has public names only for the pieces of it.
__all__ = ["PowerOfTwoChoicesRequestRouter"]

# Where Serve keeps a proxy of its own beside HAProxy.
FALLBACK_PROXY_PORT: int = RAY_SERVE_FALLBACK_PROXY_HTTP_PORT
# What Serve has for a default.
_QUEUE_LENGTHS_REMEMBERED_S = 10.0


def gcs_client(address: str | None = None) -> Any:
    """A client of Ray's head: its key-value store, and the nodes that drain.

    Args:
        address: host:port of the head; None: of the cluster that this process belongs to.
    """
    if address is not None:
        # As a process that joins a cluster: with this user's token, where there is one, which is nothing to warn of.
        logging.getLogger(maybe_enable_token_auth_if_token_available.__module__).setLevel(logging.ERROR)
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return GcsClient(address=address or ray.get_runtime_context().gcs_address)


def session_logs() -> str | None:
    """Folder of the logs of this process's Ray session; None where there is none."""
    node = worker._global_node
    return None if node is None else node.get_logs_dir_path()


def dashboard_address() -> str:
    """host:port of the dashboard of this process's Ray; empty if it has none."""
    return worker.get_dashboard_url() or ""


def deploy(config: dict[str, Any]) -> list[str]:
    """Start Serve on the Ray of this process and give it ``config``, without waiting, as ``serve run`` does with a file: in place
    of applications that came from files before. Returns the names of its own."""
    schema = ServeDeploySchema.model_validate(config)
    client = serve_api.serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema, _blocking=False)
    return [application.name for application in schema.applications]


def with_version(deployment: Deployment, version: str) -> Deployment:
    """The deployment, whose replicas Serve leaves alone when it is run from Python once more with the same version and other
    numbers. Without one each run is another version, which replaces them all. Of a file Serve makes versions itself."""
    deployment._version = version
    return deployment


def begin_to_delete(applications: Iterable[str]) -> None:
    """``serve.delete`` of each, without waiting for the end of its replicas."""
    _get_global_client().delete_apps(list(applications), blocking=False)


def replicas_by_deployment() -> dict[tuple[str, str], int]:
    """How many replicas live, by (application, deployment); deployments without any are left out."""
    counts: dict[tuple[str, str], int] = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if ReplicaID.is_full_id_str(actor["name"]):
            found = ReplicaID.from_full_id_str(actor["name"]).deployment_id
            counts[found.app_name, found.name] = counts.get((found.app_name, found.name), 0) + 1
    return counts


def gpus_of_this_machine() -> int:
    """What Ray would find here if it were started."""
    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    return manager.get_current_node_num_accelerators() if visible is None else len(visible)


def gpu_type_of_this_machine() -> str | None:
    """As Ray's resource ``accelerator_type`` would have it; None if Ray does not know."""
    return get_accelerator_manager_for_resource("GPU").get_current_node_accelerator_type()


def possible_gpus() -> float:
    """GPUs that an autoscaler says it could start; 0 where none told. Ray Data asks so, too."""
    return float((state.get_max_resources_from_cluster_config() or {}).get("GPU", 0))


def replica_is_stopping() -> bool:
    """Whether Serve has begun to shut this process's replica down (scaling down, update, migration, deletion).

    Serve tells a replica's own code nothing before ``__del__``, which it calls after the last request has ended.
    """
    return bool(getattr(replica_here(), "_shutting_down", False))


def replica_here() -> Any:
    """Serve's object for the replica in this process; None if it has none."""
    replicas = (getattr(actor, "_replica_impl", None) for actor in worker.global_worker.actors.values())
    return next((replica for replica in replicas if replica is not None), None)


class RequestsOfACall:
    """Requests that one call brings to this replica. Serve counts them as if each had come with a call of its own, within the
    ``max_ongoing_requests`` of the replica; the call itself counts for the last of them."""

    def __init__(self) -> None:
        self._replica = replica_here()
        self._began = time.time()
        self._num_more = 0

    async def take(self, count: int) -> int:
        """How many of ``count`` requests have room here: at least one."""
        if self._replica is None:
            return count
        semaphore = self._replica._semaphore
        while self._num_more < count - 1 and not semaphore.locked():
            await semaphore.acquire()
            self._num_more += 1
            self._replica._metrics_manager._num_ongoing_requests += 1
        return self._num_more + 1

    def end(self, count: int) -> None:
        """So many of them are answered."""
        for _ in range(min(count, self._num_more)):
            self._give_back()
            latency_ms = 1e3 * (time.time() - self._began)
            self._replica._metrics_manager.record_request_metrics(route="", latency_ms=latency_ms, is_error=False)

    def close(self) -> None:
        """All are over."""
        while self._num_more:
            self._give_back()

    def _give_back(self) -> None:
        self._num_more -= 1
        self._replica._semaphore.release()
        self._replica._metrics_manager._num_ongoing_requests -= 1


class CallOfRequests:
    """One call of ``handle``'s that stands for several requests, in Serve's counts of what the handle has under way, for scaling.

    Not in what Serve's router remembers of the replica's queue: the replica says that anew with each call that it takes, with all
    the requests of others, and Serve takes one off at the end of each, so that it stays too long until the next. That decides
    only whether Serve asks the replica before it sends a request there, not where a request goes: each rank has one replica.

    Args:
        replica: unique id of the replica that the call goes to.
        count: of the requests, at least one.
    """

    def __init__(self, handle: DeploymentHandle, replica: str, count: int) -> None:
        router = getattr(handle, "_router", None)
        router = getattr(router, "_asyncio_router", router)
        self._metrics: Any = getattr(router, "_metrics_manager", None)
        replicas = getattr(getattr(router, "request_router", None), "_replicas", {})
        self._replica_id = next((known for known in replicas if known.unique_id == replica), None)
        self._num_more = 0 if self._replica_id is None else count - 1
        if self._num_more:
            self._change(self._num_more)
            # As of the call itself, which belongs to no HTTP request.
            handle.request_counter.inc(self._num_more, {"route": "", "application": ""})

    def end(self, count: int) -> None:
        """So many of them are answered."""
        count = min(count, self._num_more)
        if count:
            self._num_more -= count
            self._change(-count)

    def close(self) -> None:
        """All are over."""
        self.end(self._num_more)

    def _change(self, by: int) -> None:
        for _ in range(by):
            self._metrics.inc_num_total_requests("")
        with self._metrics._queries_lock:
            self._metrics.num_requests_sent_to_replicas[self._replica_id] += by


def change_replica_address(changed: Callable[[str], str]) -> None:
    """The replica in this process will listen for calls at ``changed`` of the address that Serve has in mind."""
    add_port = serve_replica.add_port_to_grpc_server

    def add_other_port(server, address: str) -> int:
        return add_port(server, changed(address))

    serve_replica.add_port_to_grpc_server = add_other_port


async def have_controller_look(handle: DeploymentHandle) -> None:
    """One round of the controller's loop beside those of its own clock, once it knows how many requests wait at ``handle``.

    It decides how many replicas there are to be, starts and stops them, and sees which are ready; what it decides it does in the
    next look. Returns when it has looked.
    """
    router = getattr(handle, "_router", None)
    metrics = getattr(getattr(router, "_asyncio_router", router), "_metrics_manager", None)
    if metrics is not None and metrics.autoscaling_config is not None:
        # Serve tells of the first request at once, but what it tells is from before.
        metrics._add_autoscaling_metrics_point()
        metrics.push_autoscaling_metrics_to_controller()
    # As the loop calls it, of a controller that has nothing to recover.
    await _get_global_client()._controller.run_control_loop_step.remote(time.time(), float("inf"), 1)


def request_id() -> str:
    """X-Request-ID of the request that this task serves: its client's, or Serve's own. Serve's log has it in each line."""
    return _get_serve_request_context().request_id


def http_options() -> Any:
    """Host and port of Serve's proxies."""
    return _get_global_client().http_config


def on_this_loop(handle: DeploymentHandle) -> DeploymentHandle:
    """The handle, whose router works on the event loop that runs now: in a thread of its own, each call and each reply would
    change threads and wait for the interpreter. It must not have been used, and belongs to this loop from now on."""
    handle._init(_run_router_in_separate_loop=False)
    return handle


def handle_of_this_deployment() -> DeploymentHandle:
    """A handle of the deployment that this replica belongs to. Serve's own way asks the controller first whether there is one."""
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name, _check_exists=False)


async def answers_of_each(
    handle: DeploymentHandle, method: str, *arguments: Any, timeout_s: float
) -> tuple[list[Any], int]:
    """What ``method`` returns in the replicas of a deployment, and how many of them failed or were not in time. Where one hangs,
    the handle's own ``results_async`` has none.

    Raises:
        asyncio.TimeoutError: Serve does not say in time which replicas there are.
        RayServeException: there are none.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    calls = await asyncio.wait_for(
        handle.broadcast(method, *arguments)._fetch_replica_results_async(), timeout=timeout_s
    )
    asked = [asyncio.ensure_future(call.get_async()) for call in calls]
    try:
        left_s = max(0.0, deadline - loop.time())
        done, _ = await asyncio.wait(asked, timeout=left_s) if asked else (set(), set())
    finally:
        # Those that are late, or all, where nobody waits for them any more.
        for call in asked:
            call.cancel()
    answers = [call.result() for call in done if call.exception() is None]
    return answers, len(asked) - len(answers)


def by_value(handle: DeploymentHandle) -> DeploymentHandle:
    """The handle, whose replies come straight from the replica instead of through Ray's object store. What it is called with is
    of importable classes: Ray's own pickling, for what is not, takes three times as long."""
    return handle.options(_by_reference=False, request_serialization="pickle")


class PinnedRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's router, which gives a replica to the request that it was chosen for, and tells a subclass what happens.

    A subclass says how to choose in ``ranks``. Where that fails Serve's own choice counts: in Serve, an exception while it
    chooses loses the request for ever.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # A shorter time may be set for proxies, by a variable that counts for all routers of the cluster.
        self._replica_queue_len_cache = ReplicaQueueLengthCache(
            staleness_timeout_s=_QUEUE_LENGTHS_REMEMBERED_S, get_curr_time_s=kwargs.get("get_curr_time_s")
        )
        self._routed_by: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # routing task -> pending request

    @property
    def deployment(self) -> tuple[str, str]:
        """Names of the application and of the deployment that this routes to."""
        return self._deployment_id.app_name, self._deployment_id.name

    @property
    def known_replicas(self) -> list[Any]:
        """The replicas that Serve knows."""
        return list(self._replicas.values())

    @property
    def near(self) -> set[Any]:
        """Ids of the replicas that Serve's preference for nodes and zones would allow a new call."""
        return self.apply_locality_routing(pending_request=_NewCall())

    def ranks(self, call: Sequence[Any], near: set[Any]) -> list[list[Any]]:
        """Replicas by rank, the best first; of a rank Serve takes the one with the shortest queue.

        Args:
            call: positional arguments of the call that is routed; empty if Serve does not say.
            near: ids of the replicas that Serve's preference for nodes and zones allows.
        """
        raise NotImplementedError

    def meant_for(self, call: Sequence[Any]) -> Any:
        """The one replica that has what this call is for, as far as it is known; else None. Serve need not look for one."""
        raise NotImplementedError

    def ranks_failed(self, error: Exception) -> None:
        """``ranks`` raised this, and Serve chooses."""
        raise NotImplementedError

    def chose(self, call: Sequence[Any], replica: Any) -> None:
        """The call goes to this replica."""
        raise NotImplementedError

    def replicas_changed(self) -> None:
        """``known_replicas`` has changed."""
        raise NotImplementedError

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        """As ``ranks`` says."""
        self._routed_by[asyncio.current_task()] = pending_request
        near = self.apply_locality_routing(pending_request=pending_request)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Serve asks again without a pause
        try:
            return self.ranks(_arguments(pending_request), near)
        except Exception as error:
            self.ranks_failed(error)
            return await super().choose_replicas(candidate_replicas, pending_request)

    def _fulfill_next_pending_request(self, replica, request_metadata=None):
        """Give the replica to the request that it was chosen for; the base class gives it to the one that waits longest,
        for which it may have the wrong fingerprint."""
        pending_request = self._routed_by.get(asyncio.current_task())
        if pending_request is None:
            super()._fulfill_next_pending_request(replica, request_metadata)
        elif not pending_request.future.done():
            self._record_queue_wait_time(pending_request)
            pending_request.future.set_result(replica)
            self._remove_pending_request_from_indices(pending_request)

    async def _choose_replica_for_request(self, pending_request, *, is_retry=False):
        replica = None if is_retry else self.meant_for(_arguments(pending_request))
        if replica is None:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        self.chose(_arguments(pending_request), replica)
        return replica

    def update_replicas(self, replicas):
        """As the base class."""
        super().update_replicas(replicas)
        self.replicas_changed()

    def on_replica_actor_died(self, replica_id):
        """As the base class."""
        super().on_replica_actor_died(replica_id)
        self.replicas_changed()


class _NewCall:
    """Of a pending request, what the choice by nodes and zones looks at."""

    def __init__(self) -> None:
        self.routing_context = RequestRoutingContext()


def _arguments(pending_request) -> Sequence[Any]:
    return () if pending_request is None else pending_request.args
