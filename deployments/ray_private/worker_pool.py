"""What is private in Ray's pool of worker processes, as of Ray 2.60: what an update of Ray may break.

It imports no Ray Serve: a process of an engine needs it at its very start, long before that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ray
from ray._private import ray_constants, worker
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

# A process whose environment has it calls the function of that name (``module.function``) once it is known to its node, and
# before it gets any work.
START_HOOK = ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR


def prestart(variables: Mapping[str, str], keep_alive_s: int, from_controller: bool) -> None:
    """Have this process's node start a worker process with these variables of the environment, for nobody yet.

    Ray gives it to the first actor of this job whose runtime environment is the same, as if it had started it for that one: with
    the resources of that actor, and told of its devices then. Where nobody wants it, it holds none.

    Args:
        keep_alive_s: Ray does not end it for being idle before that.
        from_controller: the actor is created by one without a runtime environment, as Serve's controller is; else by one with.
    """
    node = worker.global_worker.node
    # Ray ends a process that asks for its environment before it has work, as one that begins does here.
    environment = dict(ray.get_runtime_context().runtime_env) if from_controller else {}
    environment["env_vars"] = dict(sorted({**environment.get("env_vars", {}), **variables}.items()))
    request = PrestartWorkersRequest(num_workers=1, keep_alive_duration_secs=keep_alive_s)
    request.job_id = bytes.fromhex(ray.get_runtime_context().get_job_id())
    # Ray compares the texts, which it writes in two ways.
    separators = (", ", ": ") if from_controller else (",", ":")
    request.runtime_env_info.serialized_runtime_env = json.dumps(environment, sort_keys=True, separators=separators)
    request.runtime_env_info.runtime_env_config.setup_timeout_seconds = 600
    request.runtime_env_info.runtime_env_config.eager_install = True
    with init_grpc_channel(f"{node.node_ip_address}:{node.node_manager_port}") as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=10.0)


def start_engine_processes_at_once() -> None:
    """A node that this process starts begins those that have our variables without importing Ray twice (``setup_worker.py``)."""
    # Ray joins its own folder and this name; an absolute path is what comes out.
    ray_constants.SETUP_WORKER_FILENAME = str(Path(__file__).with_name("setup_worker.py"))
