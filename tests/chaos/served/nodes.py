"""Nodes of the cluster under test, all on this machine: one more, one that is gone, and what runs where."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from ray._private.state import actors
from ray.cluster_utils import Cluster

from tests.chaos.served.processes import descendants, kinds, send

STORE_BYTES = 100_000_000
# Every node has one, the head too: no two ingresses go with the same node.
INGRESS_PLACE = {"place_of_ingress": 1}
# Full with an engine and an ingress, so that no two engines go with the same node either.
ENGINE_NODE = {
    "num_cpus": 1,
    "resources": {"accelerator_type:HERE": 1, **INGRESS_PLACE},
    "object_store_memory": STORE_BYTES,
}
# All nodes share this machine's addresses: read by Serve's proxies on all nodes but the head.
_PROXY_PORT = "RAY_SERVE_WORKER_PROXY_HTTP_PORT"


def add_node(cluster: Cluster, proxy_port: int) -> Any:
    """One more node with room for an engine and an ingress; also from a thread, so that an event loop goes on meanwhile."""
    # A node's handler of signals can be set in the main thread only. One without it still ends with the cluster.
    cluster._shutdown_at_exit = threading.current_thread() is threading.main_thread()
    return cluster.add_node(**ENGINE_NODE, env_vars={_PROXY_PORT: str(proxy_port)})


def lose_node(cluster: Cluster, node: Any, silent_s: float = 0.0) -> None:
    """All processes of the node end at once. Before that they stand still for ``silent_s`` seconds, connections open: nobody is
    told anything, as when a machine loses its network."""
    raylet = _raylet(node)
    pids = [raylet, *descendants(raylet)]
    if silent_s:
        for pid in pids:
            send(pid, signal.SIGSTOP)
        time.sleep(silent_s)
    for pid in pids:
        send(pid, signal.SIGKILL)
    cluster.remove_node(node, False)


def parts_of(node: Any) -> set[str]:
    """The kinds of processes (``processes.TITLES``) that run on the node."""
    here = kinds()
    return {here[pid] for pid in descendants(_raylet(node)) if pid in here}


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def runner_places() -> dict[str, str]:
    """Node id by actor id of the runners that Ray counts as alive."""
    return {
        actor_id: actor["Address"]["NodeID"]
        for actor_id, actor in actors().items()
        if actor["State"] == "ALIVE" and actor["ActorClassName"] == "StreamingRunner"
    }
