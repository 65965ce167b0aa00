"""How an engine replica learns that its node leaves: from the cluster's list of draining nodes."""

from __future__ import annotations

import time

import ray

from deployments.ray_private.serve import gcs_client

_RPC_TIMEOUT_S = 1.0


def node_drain_seconds() -> float | None:
    """Seconds until this process's node is taken away: infinite without a deadline, None if it stays. One blocking call."""
    context = ray.get_runtime_context()
    try:
        draining = gcs_client().get_draining_nodes(timeout=_RPC_TIMEOUT_S)
    except Exception:  # the control plane is away for a moment; the next look will tell
        return None
    for node_id, deadline_ms in draining.items():
        if node_id == context.get_node_id():
            return deadline_ms / 1000 - time.time() if deadline_ms else float("inf")
    return None
