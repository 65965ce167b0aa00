"""Metrics of requests as clients see them: a few observations a request, none a token."""

from __future__ import annotations

import re
import time
from functools import lru_cache

from cluster.metrics import INGRESS_METRICS
from cluster.outputs import FINISH_ABORT
from deployments.metrics.metrics_export import ray_metrics

FINISH_ERROR = "error"


class IngressMetrics:
    """The metrics of one ingress replica."""

    def __init__(self) -> None:
        metrics = ray_metrics(INGRESS_METRICS)
        self._requests = metrics["bireme_requests"]
        self._attempts = metrics["bireme_request_attempts"]
        self._first_token = metrics["bireme_time_to_first_token_seconds"]
        self._per_token = metrics["bireme_time_per_output_token_seconds"]
        self._whole = metrics["bireme_e2e_request_latency_seconds"]

    def count_attempt(self, outcome: object) -> None:
        """A sequence is submitted again because of ``outcome``, whose type is the cause: EngineLost is ``engine_lost``."""
        self._attempts.inc(1, {"cause": _snake_case(type(outcome).__name__)})

    def count_end(self, finish_reason: str) -> None:
        """A sequence is over."""
        self._requests.inc(1, {"finish_reason": finish_reason})

    def observe(self, received: float, first: float | None, last: float, num_tokens: int) -> None:
        """A sequence was answered. Times are of ``time.monotonic``; ``first`` is None if it had no token."""
        self._whole.observe(last - received)
        if first is not None:
            self._first_token.observe(first - received)
            if num_tokens > 1:
                self._per_token.observe((last - first) / (num_tokens - 1))


class SequenceTimes:
    """When one sequence's tokens came.

    Attributes:
        received: when its request came in.
    """

    __slots__ = ("_first", "_last", "_metrics", "_over", "received")

    def __init__(self, metrics: IngressMetrics, received: float) -> None:
        self.received = received
        self._metrics = metrics
        self._first: float | None = None
        self._last = received
        self._over = False

    def arrived(self, has_tokens: bool) -> None:
        """A delta came."""
        self._last = time.monotonic()
        if self._first is None and has_tokens:
            self._first = self._last

    def finished(self, finish_reason: str, num_tokens: int) -> None:
        """The sequence is answered; what comes after is not counted."""
        if not self._over:
            self._over = True
            self._metrics.count_end(finish_reason)
            self._metrics.observe(self.received, self._first, self._last, num_tokens)

    def given_up(self, failed: bool) -> None:
        """The request is over; a sequence that is not, failed or was left by its client."""
        if not self._over:
            self._over = True
            self._metrics.count_end(FINISH_ERROR if failed else FINISH_ABORT)


@lru_cache(maxsize=32)
def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
