"""How an engine replica learns that it has to leave.

Ray Serve tells a replica's own code nothing before ``__del__``, which it calls after the last request has ended; what is told
in time is a flag of its replica object and, for a node that drains, the cluster's list of draining nodes.
"""

from __future__ import annotations

import time

import ray
from ray._private.worker import global_worker
from ray._raylet import GcsClient  # type: ignore[attr-defined]

_RPC_TIMEOUT_S = 1.0


def serve_is_stopping() -> bool:
    """Whether Serve has begun to shut this process's replica down (scaling down, update, migration, deletion)."""
    for actor in global_worker.actors.values():
        replica = getattr(actor, "_replica_impl", None)
        if replica is not None:
            return bool(getattr(replica, "_shutting_down", False))
    return False


def node_drain_seconds() -> float | None:
    """Seconds until this process's node is taken away: infinite without a deadline, None if it stays. One blocking call."""
    context = ray.get_runtime_context()
    try:
        draining = GcsClient(address=context.gcs_address).get_draining_nodes(timeout=_RPC_TIMEOUT_S)
    except Exception:  # the control plane is away for a moment; the next look will tell
        return None
    for node_id, deadline_ms in draining.items():
        if node_id == context.get_node_id():
            return deadline_ms / 1000 - time.time() if deadline_ms else float("inf")
    return None
