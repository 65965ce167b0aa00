"""How many ingresses there are to be: a pure function of the CPU time that each uses.

An ingress is one event loop, so that a core is all it can use. More of them when the busiest is near that, and as many as bring
the mean back to where there is room; fewer when the largest use of a while fits into the rest with more room than that. Between
the two nothing changes, so that a load which stays as it is moves nobody. What is missing or stale holds.

Ingresses take cores that engines and proxies need, too. So there are no more than the nodes with engines have cores for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# An ingress that is full takes a core; what the proxy does for it, and its part in the engines' replicas, most of another.
CORES_AN_INGRESS = 2
MOST_INGRESSES = 16
_STEP_S = 5.0


class EngineHost(NamedTuple):
    """Where an engine runs; with its replica it travels as text.

    Attributes:
        num_cores: of its node, as many as may be used there.
        engine_cores: of them, those that the engine keeps busy.
        node_id: unique among the nodes.
    """

    num_cores: int
    engine_cores: int
    node_id: str = ""

    def as_metadata(self) -> dict[str, str]:
        """As it travels."""
        return {"num_cores": str(self.num_cores), "engine_cores": str(self.engine_cores)}

    @classmethod
    def of(cls, metadata: Mapping[str, str], node_id: str) -> EngineHost | None:
        """What a replica on this node says; None if it does not."""
        try:
            return cls(int(metadata["num_cores"]), int(metadata["engine_cores"]), node_id)
        except (KeyError, ValueError):
            return None


class IngressUse(NamedTuple):
    """What an ingress said last.

    Attributes:
        cpu_share: cores that its process used, on average over some seconds.
        most: ingresses that the nodes with engines have cores for, as far as it knows; None: it does not.
        age_s: how long ago it said so.
    """

    cpu_share: float
    most: int | None
    age_s: float


class IngressInputs(NamedTuple):
    """All that is known at one moment.

    Attributes:
        now: seconds of a clock that does not jump.
        uses: what ingresses said, of those that run.
        num_running: ingresses that run.
        current_target: how many there are to be; 0: nobody knows.
    """

    now: float
    uses: tuple[IngressUse, ...]
    num_running: int
    current_target: int


class IngressRule(NamedTuple):
    """When there are more, and when fewer.

    Attributes:
        full: cores of the busiest, from which on there are more.
        aim: cores of each, on average, when there are more.
        rest: cores of each, on average, that the rest may use when one leaves. Less than ``aim``.
        hold_s: so long all must have fitted into the rest.
        max_age_s: nothing is decided from what was said longer ago.
        most: bound, beside that of the cores.
    """

    full: float = 0.65
    aim: float = 0.5
    rest: float = 0.38
    hold_s: float = 180.0
    max_age_s: float = 10.0
    most: int = MOST_INGRESSES


class IngressState(NamedTuple):
    """What is remembered from decision to decision.

    Attributes:
        since: when what all use began to be known, or the number changed last; None: it is not known.
        loads: (second, cores that all used together) of a while back, the largest of each few seconds.
    """

    since: float | None = None
    loads: tuple[tuple[float, float], ...] = ()


class IngressDecision(NamedTuple):
    """How many ingresses there are to be, why, and what to remember."""

    target: int
    reason: str
    state: IngressState


RULE = IngressRule()


def most_ingresses(hosts: Iterable[EngineHost]) -> int | None:
    """So many the nodes with engines have cores for, beside the engines; at least 1. None if no engine is known."""
    nodes: dict[str, list[EngineHost]] = defaultdict(list)
    for host in hosts:
        nodes[host.node_id].append(host)
    if not nodes:
        return None
    spare = (max(e.num_cores for e in engines) - sum(e.engine_cores for e in engines) for engines in nodes.values())
    return max(1, sum(max(0, cores) // CORES_AN_INGRESS for cores in spare))


def decide(inputs: IngressInputs, state: IngressState, rule: IngressRule = RULE) -> IngressDecision:
    """The next target, at least 1."""
    current = max(1, inputs.current_target if inputs.current_target > 0 else inputs.num_running)
    fresh = [use for use in inputs.uses if 0 <= use.age_s <= rule.max_age_s and 0 <= use.cpu_share < math.inf]
    if not fresh or len(fresh) < inputs.num_running:
        # What is known of some says nothing of all: fewer only after it has been known again for as long as ever.
        return IngressDecision(current, "hold: not all have said what they use", IngressState())
    shares = [min(use.cpu_share, 1.0) for use in fresh]
    load = sum(shares)
    loads = _remembered(state.loads, inputs.now, load, rule)
    since = inputs.now if state.since is None else state.since
    needed = _whole(load / rule.aim)
    if max(shares) >= rule.full and needed > current:
        if inputs.num_running < current:
            return IngressDecision(current, "hold: one starts", IngressState(since, loads))
        bounds = [use.most for use in fresh if use.most is not None]
        target = min(needed, rule.most, min(bounds, default=current))
        if target > current:
            reason = f"up: {load:.2f} cores are used, {max(shares):.2f} of them by one"
            return IngressDecision(target, reason, IngressState(inputs.now, loads))
        return IngressDecision(current, "hold: there are no cores for more", IngressState(since, loads))
    kept = max(1, _whole(max(load for _, load in loads) / rule.rest))
    if kept < current and inputs.now - since >= rule.hold_s:
        return IngressDecision(kept, f"down: what was used of late fits {kept}", IngressState(inputs.now, loads))
    return IngressDecision(current, "enough", IngressState(since, loads))


def _whole(ingresses: float) -> int:
    """A fraction of a thousandth is no ingress."""
    return math.ceil(ingresses - 1e-3)


def _remembered(
    loads: tuple[tuple[float, float], ...], now: float, load: float, rule: IngressRule
) -> tuple[tuple[float, float], ...]:
    kept = tuple(one for one in loads if now - rule.hold_s <= one[0] <= now)
    if kept and now - kept[-1][0] < _STEP_S:
        begun, largest = kept[-1]
        return (*kept[:-1], (begun, max(largest, load)))
    return (*kept, (now, load))
