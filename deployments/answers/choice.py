"""One sequence of a request, from its journal entry to what its client has of it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.journal import JournalEntry
from deployments.answers.sequence_output import SequenceOutput
from deployments.metrics.ingress_metrics import SequenceTimes
from deployments.routing.submission import Submission


@dataclass(eq=False, slots=True)
class Choice:
    """A choice of an answer, as OpenAI calls it.

    Attributes:
        index: among those of the request.
        entry: what was asked of engines, and came.
        output: what was read of it, as text.
        times: when its tokens came.
        submission: while it is followed; None before, and if nothing is missing.
        num_sent: tokens that chunks were built of; -1 before the first chunk.
        has_ended: a chunk was built that ends it.
    """

    index: int
    entry: JournalEntry
    output: SequenceOutput
    times: SequenceTimes
    submission: Submission | None = None
    num_sent: int = -1
    has_ended: bool = False
