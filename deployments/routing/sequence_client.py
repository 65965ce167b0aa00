"""What runs the sequences of a request: the engines of a cluster, or one in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cluster.api_errors import ApiError
from cluster.journal import JournalEntry
from cluster.outputs import TokenDelta
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.request_events import RequestEvents
from deployments.routing.submission import Submission


class SequenceClient(Protocol):
    """Every method belongs to one event loop, ``check_room`` to any thread.

    Attributes:
        subscriber: name that the engines know it by.
    """

    events: RequestEvents
    metrics: IngressMetrics
    subscriber: str

    def check_room(self, num_sequences: int, tenant: str = "") -> None:
        """Raise ApiError 429 if so many sequences are not taken now."""

    def submit(
        self, entry: JournalEntry, deliver: Callable[[TokenDelta], None], fail: Callable[[ApiError], None]
    ) -> Submission:
        """Start a sequence. Each new delta is delivered once and in order; ``fail`` is called instead of a last one. Who sets the
        submission's ``deliver_token`` gets most tokens there instead."""
        ...

    def cancel(self, submission: Submission) -> None:
        """Stop caring about a sequence; safe to call at any time."""
