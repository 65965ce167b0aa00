"""Ray Serve's own settings of autoscaling: of engines, derived from the one line ``autoscaling``, and of ingresses."""

from __future__ import annotations

from typing import Any

from cluster.config import MOST_ENGINES, Autoscaling
from cluster.scaling.ingresses import MOST_INGRESSES

POLICY = "deployments.autoscaling.serve_policy:ServePolicy"
DECIDE = "cluster.scaling.policy:decide"
INGRESS_POLICY = "deployments.autoscaling.serve_policy:ServeIngressPolicy"
INGRESS_DECIDE = "cluster.scaling.ingresses:decide"

# What Serve itself measures decides only whether a first engine is started: soon, by what waits now.
_METRICS_INTERVAL_S, _LOOK_BACK_S = 0.5, 0.6
# So often an ingress says what it uses of a core, which is a mean over ten seconds.
_INGRESS_INTERVAL_S, _INGRESS_LOOK_BACK_S = 2.0, 10.0


def autoscaling_config(
    line: Autoscaling, kind: str, max_num_seqs: int, max_num_batched_tokens: int, decide: str = DECIDE
) -> dict[str, Any]:
    """Serve's ``autoscaling_config``. Its bounds are wide, since those of ``line`` may change while replicas stay; when to wait
    is the policy's to say, so Serve's delays are 0. Arguments as of ``ServePolicy``."""
    return {
        "min_replicas": min(1, line.min_replicas),
        "max_replicas": MOST_ENGINES,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "metrics_interval_s": _METRICS_INTERVAL_S,
        "look_back_period_s": _LOOK_BACK_S,
        "policy": {
            "policy_function": POLICY,
            "policy_kwargs": {
                "line": line.model_dump(mode="json"),
                "kind": kind,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
                "decide": decide,
            },
        },
    }


def ingress_autoscaling_config(decide: str = INGRESS_DECIDE) -> dict[str, Any]:
    """Serve's ``autoscaling_config`` of ingresses: as many as their CPU use asks for, whatever requests are open.

    Args:
        decide: as of ``ServeIngressPolicy``.
    """
    return {
        "min_replicas": 1,
        "max_replicas": MOST_INGRESSES,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "metrics_interval_s": _INGRESS_INTERVAL_S,
        "look_back_period_s": _INGRESS_LOOK_BACK_S,
        "policy": {"policy_function": INGRESS_POLICY, "policy_kwargs": {"decide": decide}},
    }
