"""Nodes of the cluster under test, all on this machine: one more, one that is gone, and what runs where."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from ray._private.state import actors
from ray.cluster_utils import Cluster

from tests.chaos.processes import descendants, send

STORE_BYTES = 100_000_000
ENGINE_NODE = {"num_cpus": 1, "resources": {"accelerator_type:HERE": 1}, "object_store_memory": STORE_BYTES}


def add_node(cluster: Cluster) -> Any:
    """One more node with room for an engine; also from a thread, so that an event loop goes on meanwhile."""
    # A node's handler of signals can be set in the main thread only. One without it still ends with the cluster.
    cluster._shutdown_at_exit = threading.current_thread() is threading.main_thread()
    return cluster.add_node(**ENGINE_NODE)


def lose_node(cluster: Cluster, node: Any, silent_s: float = 0.0) -> None:
    """All processes of the node end at once. Before that they stand still for ``silent_s`` seconds, connections open: nobody is
    told anything, as when a machine loses its network."""
    raylet = node.all_processes["raylet"][0].process.pid
    pids = [raylet, *descendants(raylet)]
    if silent_s:
        for pid in pids:
            send(pid, signal.SIGSTOP)
        time.sleep(silent_s)
    for pid in pids:
        send(pid, signal.SIGKILL)
    cluster.remove_node(node, False)


def runner_places() -> dict[str, str]:
    """Node id by actor id of the runners that Ray counts as alive."""
    return {
        actor_id: actor["Address"]["NodeID"]
        for actor_id, actor in actors().items()
        if actor["State"] == "ALIVE" and actor["ActorClassName"] == "StreamingRunner"
    }
