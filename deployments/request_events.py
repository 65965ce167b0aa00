"""What happens to requests besides their tokens: one log line an event, with the request id, and a count."""

from __future__ import annotations

import logging
from collections import Counter

from cluster.metrics import CONTINUITY_METRICS
from deployments.metrics_export import ray_metrics

logger = logging.getLogger("ray.serve")

ATTEMPTS = "bireme_request_attempts"
HANDOVERS = "bireme_request_handovers"
FENCED = "bireme_fenced_messages"
QUARANTINED = "bireme_quarantined_requests"
RESUMED = "bireme_client_resumes"
SILENT_ENGINES = "bireme_silent_engines"
RECOVERY = "bireme_recovery_seconds"


class RequestEvents:
    """Counts events under the names of their metrics.

    Attributes:
        counts: how often each event happened, by metric name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._metrics = ray_metrics(CONTINUITY_METRICS)

    def record(self, metric: str, request_id: str, **details: object) -> None:
        """Count one event and log it."""
        self.counts[metric] += 1
        if metric in self._metrics:
            self._metrics[metric].inc()
        fields = " ".join(f"{name}={value}" for name, value in details.items())
        logger.warning("event=%s request=%s %s", metric.removeprefix("bireme_"), request_id, fields)

    def recovered(self, request_id: str, seconds: float) -> None:
        """The first token after an attempt was lost or handed over."""
        self.counts[RECOVERY] += 1
        self._metrics[RECOVERY].observe(seconds)
        logger.info("event=recovered request=%s seconds=%.2f", request_id, seconds)
