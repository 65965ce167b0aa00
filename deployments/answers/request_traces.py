"""The ways of the newest requests of one ingress, by answer and by trace."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from cluster.observability.request_trace import hops, wall_clock
from cluster.process.logs import log_value
from cluster.tenant import Tenant
from deployments.answers.choice import Choice
from deployments.metrics.ingress_metrics import SequenceTimes

_MOST = 2048


class _Traced(NamedTuple):
    """One sequence. Holds nothing of what was asked or answered."""

    request_id: str
    marks: dict[str, float]
    times: SequenceTimes


class RequestTraces:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        # A client may choose a name, and it is no other client's.
        self._traces: OrderedDict[tuple[str, str], list[_Traced]] = OrderedDict()

    def begin(self, names: tuple[str, ...], tenant: Tenant, choices: list[Choice]) -> None:
        """A request goes to the engines; ``names`` are the ids under which it is asked for, empty ones aside."""
        traced = [_Traced(choice.entry.request_id, choice.entry.marks, choice.times) for choice in choices]
        for name in filter(None, names):
            self._traces[tenant.id, name] = traced
            self._traces.move_to_end((tenant.id, name))
        while len(self._traces) > _MOST:
            self._traces.popitem(last=False)

    def of(self, name: str, tenant_id: str) -> dict[str, Any] | None:
        """What is known by now, a list of ``hops`` each sequence; None if that tenant has asked this ingress for none of that
        name lately. ``name`` is as a client gave it, or as logs have it."""
        found = self._traces.get((tenant_id, name)) or self._traces.get((tenant_id, log_value(name)))
        if found is None:
            return None
        return {
            "id": name,
            "sequences": [
                {"request": traced.request_id, "hops": hops({**traced.marks, **_of_tokens(traced.times)})}
                for traced in found
            ],
        }


def _of_tokens(times: SequenceTimes) -> dict[str, float]:
    marks = {"received": wall_clock(times.received)}
    if times.first is not None:
        marks |= {"first_token": wall_clock(times.first), "last_token": wall_clock(times.last)}
    return marks
