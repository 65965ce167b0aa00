"""Ray's metric objects for the metrics that ``cluster.observability.metrics`` names."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Mapping

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


class GatheredCounter:
    """A counter of Ray's that is told now and then: telling it once takes some 15 µs."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._counts: Counts[tuple[tuple[str, str], ...]] = Counts()

    def inc(self, value: int = 1, tags: Mapping[str, str] | None = None) -> None:
        """Count; Ray knows of it after ``tell``."""
        self._counts[tuple(tags.items()) if tags else ()] += value

    def tell(self) -> None:
        """Tell Ray what was counted since it was told last."""
        for tags, count in self._counts.items():
            self._counter.inc(count, dict(tags))
        self._counts.clear()
