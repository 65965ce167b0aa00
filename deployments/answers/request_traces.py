"""The ways of the newest requests of one ingress, by answer and by trace."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from cluster.observability.request_trace import hops, wall_clock
from cluster.process.logs import log_value
from cluster.tenant import Tenant
from deployments.answers.choice import Choice
from deployments.metrics.ingress_metrics import SequenceTimes

# A sequence takes some 0.8 KB, so that all of them take some 16 MB.
MOST_SEQUENCES = 2**14


class _Traced(NamedTuple):
    """One sequence. Holds nothing of what was asked or answered."""

    request_id: str
    marks: dict[str, float]
    times: SequenceTimes


class _Request(NamedTuple):
    """Its sequences, and the names under which its tenant finds it: a client may choose one, and it is no other client's."""

    names: list[tuple[str, str]]
    sequences: list[_Traced]


class RequestTraces:
    """Belongs to one event loop.

    Args:
        most_sequences: that are kept, of the newest request at least its own.
    """

    def __init__(self, most_sequences: int = MOST_SEQUENCES) -> None:
        self._most = most_sequences
        self._num_sequences = 0
        self._requests: deque[_Request] = deque()
        # The newest one of each name.
        self._named: dict[tuple[str, str], _Request] = {}

    def __len__(self) -> int:
        """Requests that are kept."""
        return len(self._requests)

    def begin(self, names: tuple[str, ...], tenant: Tenant, choices: list[Choice]) -> None:
        """A request goes to the engines; ``names`` are the ids under which it is asked for, empty ones aside."""
        traced = [_Traced(choice.entry.request_id, choice.entry.marks, choice.times) for choice in choices]
        request = _Request([(tenant.id, name) for name in names if name], traced)
        for name in request.names:
            self._named[name] = request
        self._requests.append(request)
        self._num_sequences += len(traced)
        while self._num_sequences > self._most and len(self._requests) > 1:
            self._forget(self._requests.popleft())

    def _forget(self, request: _Request) -> None:
        self._num_sequences -= len(request.sequences)
        for name in request.names:
            if self._named.get(name) is request:
                del self._named[name]

    def of(self, name: str, tenant_id: str) -> dict[str, Any] | None:
        """What is known by now, a list of ``hops`` each sequence; None if that tenant has asked this ingress for none of that
        name lately. ``name`` is as a client gave it, or as logs have it."""
        found = self._named.get((tenant_id, name)) or self._named.get((tenant_id, log_value(name)))
        if found is None:
            return None
        return {
            "id": name,
            "sequences": [
                {"request": traced.request_id, "hops": hops({**traced.marks, **_of_tokens(traced.times)})}
                for traced in found.sequences
            ],
        }


def _of_tokens(times: SequenceTimes) -> dict[str, float]:
    marks = {"received": wall_clock(times.received)}
    if times.first is not None:
        marks |= {"first_token": wall_clock(times.first), "last_token": wall_clock(times.last)}
    return marks
