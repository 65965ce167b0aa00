"""Builds the application: ``serve run deployments.llm:build_openai_app model=... max_num_seqs=8``.

Annotations here are evaluated, because Ray Serve reads the builder's parameter type to validate its arguments.
"""

import hashlib
import json
import os
from typing import Any

from ray import serve
from ray.serve import Application

from actors.engine.memory_plan import step_budget
from cluster import __version__
from cluster.config import ENGINE_REPLICA_CPUS, INGRESS_CPUS, LLMConfig
from deployments.autoscaling.serve_options import autoscaling_config, ingress_autoscaling_config
from deployments.http.keys import key_digest
from deployments.ingress import OpenAiIngress
from deployments.ray_private.serve import with_version
from deployments.replica.engine_replica import GRACEFUL_SHUTDOWN_TIMEOUT_S, EngineReplica
from deployments.replica.gpu_placement import cluster_gpus, runner_num_gpus, runner_resources
from deployments.spares.engine_processes import REPLICA, EngineProcesses, engine_processes
from deployments.start.app_arguments import AppArguments, SettingsError
from deployments.start.ray_llm_config import LLM_CONFIGS
from deployments.start.serve_options import check_serve_options, with_options

_INGRESS_ONGOING_REQUESTS = 10_000
_INGRESS_SHUTDOWN_TIMEOUT_S = 600.0
_HEALTH_CHECK_PERIOD_S = 2.0
# An ingress only passes things on. One that hangs draws requests until Serve has missed three answers and replaces it.
_INGRESS_HEALTH_CHECK_TIMEOUT_S = 5.0
_COUNTS = {"num_replicas", "autoscaling_config"}


# A version of which none has started yet, and one that takes another's place, is given up by Serve after so many deaths at its
# start: from then on whoever dies is replaced no more, until the next deployment.
_START_TRIES = 5
# Serve looks back half a minute and waits another before it starts anything. Requests that are held want their engines now, and
# as many as they need: the first is started by Serve's own rule, the others when they have been wanted for half a second. A mean
# over a longer time would see a burst late, and in parts.
_PROMPT_SCALING = {"upscale_delay_s": 0.5, "look_back_period_s": 0.6, "metrics_interval_s": 0.5}


def engine_options(
    config: LLMConfig, num_gpus: float = 0.0, processes: EngineProcesses | None = None
) -> dict[str, Any]:
    """Serve options of the engine deployment, each runner with ``num_gpus``; those in ``deployment_config`` win."""
    # The engine's own queue is the bound, and the ingress sends it no more than it has room for (``admission``). Serve's queue
    # has none: it counts every call of an ingress, to whatever engine, until it is answered, and logs each that it drops.
    beyond_engine = 2 * (config.max_num_seqs + config.max_queued_requests) + 64
    options: dict[str, Any] = {
        "max_ongoing_requests": beyond_engine,
        "max_queued_requests": -1,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "ray_actor_options": {"num_cpus": ENGINE_REPLICA_CPUS},
        "logging_config": {"enable_access_log": False},
        "request_router_config": {
            "request_router_class": "deployments.routing.router.engine_router:EngineRouter",
            "request_router_kwargs": {"policy": config.routing_policy},
        },
        **config.deployment_config,
    }
    autoscaling = options.get("autoscaling_config")
    if config.autoscaling is not None:
        options["autoscaling_config"] = autoscaling_config(
            config.autoscaling,
            f"{config.model} on {config.device}",
            config.max_num_seqs,
            step_budget(config, num_gpus > 0),
        )
    elif autoscaling is not None:
        options["autoscaling_config"] = {
            "target_ongoing_requests": config.max_num_seqs,
            **_PROMPT_SCALING,
            **autoscaling,
        }
    if processes is not None and "runtime_env" not in options["ray_actor_options"]:
        runtime_env = {"env_vars": processes.variables[REPLICA]}
        options["ray_actor_options"] = {**options["ray_actor_options"], "runtime_env": runtime_env}
    replica = {"CPU": options["ray_actor_options"].get("num_cpus", ENGINE_REPLICA_CPUS)}
    return {
        **options,
        "placement_group_bundles": [replica, runner_resources(config, num_gpus)],
        "placement_group_strategy": "STRICT_PACK",
        "max_constructor_retry_count": _START_TRIES,
    }


def ingress_options(config: LLMConfig) -> dict[str, Any]:
    """Serve options of the ingress deployment; those in ``ingress_config`` win. If they leave the number of ingresses open, the
    load decides."""
    # HAProxy chooses ingresses itself, and Serve refuses a router beside it.
    router = {
        "request_router_config": {"request_router_class": "deployments.routing.router.ingress_router:IngressRouter"}
    }
    return {
        "max_ongoing_requests": _INGRESS_ONGOING_REQUESTS,
        # A leaving ingress ends the answers it has begun; nobody else can, unless the client resumes them.
        "graceful_shutdown_timeout_s": _INGRESS_SHUTDOWN_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": _INGRESS_HEALTH_CHECK_TIMEOUT_S,
        "ray_actor_options": {"num_cpus": INGRESS_CPUS},
        "logging_config": {"enable_access_log": False},
        **({} if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else router),
        **({} if config.ingress_config.keys() & _COUNTS else {"autoscaling_config": ingress_autoscaling_config()}),
        **config.ingress_config,
        "max_constructor_retry_count": _START_TRIES,
    }


def build_openai_app(arguments: AppArguments) -> Application:
    """The Serve application: one ingress, and the engines behind it. From Python, an ``LLMConfig`` will do, or what
    Ray Serve LLM's builder of this name takes.

    Raises:
        SettingsError: Ray Serve refuses deployment_config or ingress_config, or a GPU is asked for that the cluster lacks.
    """
    if not isinstance(arguments, LLMConfig):
        arguments = AppArguments.model_validate(_as_mapping(arguments))
    config = LLMConfig(**{name: getattr(arguments, name) for name in LLMConfig.model_fields})
    check_serve_options("deployment_config", config.deployment_config)
    check_serve_options("ingress_config", config.ingress_config)
    num_gpus = runner_num_gpus(config, cluster_gpus())
    # What is bound below is pickled and kept by Ray: of keys only their digests, and the engines want none.
    key_digests = tuple(map(key_digest, config.api_keys))
    config = config.model_copy(update={"api_keys": []})
    # Replicas are bound with nothing of how many there are, so that another number of them replaces none.
    for_engines, for_ingress = config.for_engines(), config.for_ingress()
    processes = engine_processes(for_engines, num_gpus, engine_options(config, num_gpus)["placement_group_bundles"])
    engines = serve.deployment(name="LLMServer")(EngineReplica)
    engines = with_options(engines, "deployment_config", engine_options(config, num_gpus, processes))
    engines = with_version(engines, _version(for_engines, num_gpus, *processes.variables.values()))
    ingress = serve.deployment(name="OpenAiIngress")(serve.ingress()(OpenAiIngress))
    ingress = with_options(ingress, "ingress_config", ingress_options(config))
    ingress = with_version(ingress, _version(for_ingress, [digest.hex() for digest in key_digests], processes.group))
    return ingress.bind(for_ingress, engines.bind(for_engines, num_gpus, processes), key_digests, processes)


def _version(config: LLMConfig, *others: Any) -> str:
    """Of what replicas are bound with, and of this project."""
    text = json.dumps([__version__, config.model_dump(mode="json"), *others], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_llm_deployment(
    llm_config: Any,
    *,
    name_prefix: str | None = None,
    bind_kwargs: dict[str, Any] | None = None,
    override_serve_options: dict[str, Any] | None = None,
    deployment_cls: Any = None,
) -> Application:
    """The application of one of Ray Serve LLM's ``LLMConfig``, as its builder of this name takes it.

    It has its ingress with it: engines here are asked by an ingress, which keeps what they answered, and not through a handle.

    Args:
        override_serve_options: options of the engines that win over its ``deployment_config``.
    Raises:
        SettingsError: as ``build_openai_app``, or one of the other arguments is given.
    """
    given = {"name_prefix": name_prefix, "bind_kwargs": bind_kwargs, "deployment_cls": deployment_cls}
    refused = [name for name, value in given.items() if value]
    if refused:
        raise SettingsError(f"{', '.join(refused)}: deployments keep their names and classes here; leave it out")
    arguments: dict[str, Any] = {LLM_CONFIGS: [llm_config]}
    if override_serve_options:
        arguments["deployment_config"] = override_serve_options
    return build_openai_app(arguments)  # type: ignore[arg-type]


def _as_mapping(arguments: Any) -> Any:
    """What Ray Serve LLM calls ``LLMServingArgs`` as a mapping."""
    return arguments.model_dump(exclude_unset=True) if hasattr(arguments, "model_dump") else arguments
