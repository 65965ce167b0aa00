"""Ray Serve's own switches for this application. They are environment variables, read when Serve is imported, by every process
of the cluster; ``docs/serving.md`` has the figures behind them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SERVE_ENVIRONMENT = {
    # HTTP goes from HAProxy straight to the ingress process; through Serve's Python proxy each chunk is a Ray object.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # The ingress is asyncio throughout: one event loop for HTTP and streams saves a thread switch a message.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # The controller looks around ten times a second by default, which costs 4 % of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray starts workers with low priority; these are the service itself.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def apply_serve_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what is not set yet: a value that a person chose stays."""
    for name, value in SERVE_ENVIRONMENT.items():
        environment.setdefault(name, value)
