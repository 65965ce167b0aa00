"""What happens to requests besides their tokens: one log line an event, with the request id, and a count."""

from __future__ import annotations

import logging
from collections import Counter

from cluster.observability.metrics import CONTINUITY_METRICS
from cluster.process.logs import log_fields
from deployments.metrics.metrics_export import ray_metrics

logger = logging.getLogger("ray.serve")

ATTEMPTS = "bireme_request_attempts"
DRAINED = "bireme_drained_engines"
HANDOVERS = "bireme_request_handovers"
MOVES = "bireme_request_moves"
FENCED = "bireme_fenced_messages"
QUARANTINED = "bireme_quarantined_requests"
RESUMED = "bireme_client_resumes"
SILENT_ENGINES = "bireme_silent_engines"
RECOVERY = "bireme_recovery_seconds"


class RequestEvents:
    """Counts events under the names of their metrics.

    Attributes:
        counts: how often each event happened, by metric name.
        recoveries: seconds from losing an attempt to the next token: how many there were, their sum and the longest.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recoveries = {"count": 0, "total_s": 0.0, "longest_s": 0.0}
        self._metrics = ray_metrics(CONTINUITY_METRICS)

    def record(self, metric: str, request_id: str, **details: object) -> None:
        """Count one event and log it."""
        self.count(metric)
        logger.warning(log_fields(event=metric.removeprefix("bireme_"), request=request_id, **details))

    def count(self, metric: str) -> None:
        """Count one event that comes too often for the log."""
        self.counts[metric] += 1
        if metric in self._metrics:
            self._metrics[metric].inc()

    def recovered(self, request_id: str, seconds: float) -> None:
        """The first token after an attempt was lost or handed over."""
        found = self.recoveries
        found["count"] += 1
        found["total_s"] += seconds
        found["longest_s"] = max(found["longest_s"], seconds)
        self._metrics[RECOVERY].observe(seconds)
        logger.info(log_fields(event="recovered", request=request_id, seconds=f"{seconds:.2f}"))
