"""The number of ingresses of one application, as Serve's controller asks for it: gathers what they say of their CPU use."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from cluster.scaling.ingresses import IngressDecision, IngressInputs, IngressState, IngressUse

logger = logging.getLogger("ray.serve")

# Names of what an ingress says to Serve of itself.
CPU_SHARE, MOST = "cpu_share", "most_ingresses"

Decide = Callable[[IngressInputs, IngressState], IngressDecision]


class Context(Protocol):
    """What is used of Ray Serve's ``AutoscalingContext``."""

    target_num_replicas: int
    running_replicas: list[Any]
    raw_metrics: dict[str, dict[Any, Any]] | None


class IngressPolicy:
    """Called in one thread. What it remembers may be lost with it: then none leaves before it has seen as much again.

    Args:
        application: Serve's name of it, for the log.
        decide: the policy.
        now: clock; seconds since some moment.
    """

    def __init__(self, application: str, decide: Decide, now: Callable[[], float] = time.monotonic) -> None:
        self._application, self._decide, self._now = application, decide, now
        self._state = IngressState()
        # By replica: the time that its last word has, on its own clock, and when that was heard, on this one.
        self._heard: dict[Any, tuple[float, float]] = {}

    @classmethod
    def named(cls, application: str, decide: str) -> IngressPolicy:
        """With ``decide`` as ``module:function``."""
        module, _, name = decide.partition(":")
        return cls(application, getattr(importlib.import_module(module), name))

    def target(self, context: Context) -> int:
        """How many ingresses there are to be."""
        inputs = IngressInputs(
            self._now(), self._uses(context), len(context.running_replicas), context.target_num_replicas
        )
        target, reason, self._state = self._decide(inputs, self._state)
        if target != context.target_num_replicas:
            logger.info("ingresses of %s: %d -> %d, %s", self._application, context.target_num_replicas, target, reason)
        return target

    def _uses(self, context: Context) -> tuple[IngressUse, ...]:
        said = context.raw_metrics or {}
        shares, most = said.get(CPU_SHARE, {}), said.get(MOST, {})
        now, uses = self._now(), []
        self._heard = {replica: heard for replica, heard in self._heard.items() if replica in shares}
        for replica, series in shares.items():
            if replica not in context.running_replicas or not series:
                continue
            last = series[-1]
            said_at, heard_at = self._heard.get(replica, (None, now))
            if said_at != last.timestamp:
                heard_at = now
                self._heard[replica] = last.timestamp, now
            bounds = most.get(replica)
            uses.append(IngressUse(float(last.value), int(bounds[-1].value) if bounds else None, now - heard_at))
        return tuple(uses)
