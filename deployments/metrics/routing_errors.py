"""Choices of an engine in which the routing policy failed: counted, and one log line a kind, as every request may meet it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from cluster.observability.metrics import ROUTING_METRICS
from deployments.metrics.metrics_export import ray_metrics

logger = logging.getLogger("ray.serve")

_told: set[tuple[str, str]] = set()


def count(policy: str, error: Exception) -> None:
    """``policy`` raised ``error``, and the request was sent to an engine by another rule. The first of a kind is logged."""
    kind = policy, type(error).__name__
    _metric().inc(1, dict(zip(("policy", "error"), kind)))
    if kind not in _told:
        _told.add(kind)
        logger.error("event=routing_error policy=%s: requests go to one of two engines instead", policy, exc_info=error)


@functools.cache
def _metric() -> Any:
    (metric,) = ray_metrics(ROUTING_METRICS).values()
    return metric
