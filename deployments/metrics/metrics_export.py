"""Ray's metric objects for the metrics that ``cluster.observability.metrics`` names."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.observability.metrics import LATENCY_BUCKETS_S, Metric


def ray_metrics(metrics: Iterable[Metric]) -> dict[str, Counter | Gauge | Histogram]:
    """Make Ray's objects, by name. Ray's agent on this node exports what is recorded in them."""
    return {metric.name: _ray_metric(metric) for metric in metrics}


def _ray_metric(metric: Metric) -> Counter | Gauge | Histogram:
    options = {"description": metric.description, "tag_keys": metric.tags}
    if metric.kind == "histogram":
        return Histogram(metric.name, boundaries=LATENCY_BUCKETS_S, **options)
    return {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, **options)
