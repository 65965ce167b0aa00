"""What Ray Serve calls in its controller to learn how many engines, and how many ingresses, there are to be.

Serve carries this module there by value, and what it imports by name: it imports nothing of the project until it is there. What
it raised would stop the scaling of every application of the cluster, so it raises nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any

_COMPLAINS_EVERY_S = 60.0


class _Guarded:
    """A policy of Ray Serve's for one deployment, which asks another one and answers for it where that fails."""

    _what = ""

    def __init__(self) -> None:
        self._policy: Any = None
        self._complained_at = -_COMPLAINS_EVERY_S

    def _made(self, application: str) -> Any:
        """The policy that is asked, made in Serve's controller."""
        raise NotImplementedError

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many there are to be; as many as now where that cannot be said. The state is kept elsewhere: Serve's own is
        lost whenever its controller starts again."""
        lowest, highest = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        target = context.target_num_replicas
        try:
            if self._policy is None:
                self._policy = self._made(context.app_name or "")
            target = int(self._policy.target(context))
        except Exception:
            if time.monotonic() - self._complained_at > _COMPLAINS_EVERY_S:
                self._complained_at = time.monotonic()
                logger = logging.getLogger("ray.serve")
                logger.exception("the scaling policy failed; as many %s stay as there are", self._what)
        return max(lowest, min(highest, target)), {}


class ServePolicy(_Guarded):
    """Of engines.

    Args:
        line: the setting ``autoscaling`` as the configuration has it.
        kind: model and device of the engines.
        max_num_seqs, max_num_batched_tokens: slots of an engine, and tokens of a step.
        decide: ``module:function``, called as ``cluster.scaling.policy.decide`` is.
    """

    _what = "engines"

    def __init__(
        self, line: dict[str, Any], kind: str, max_num_seqs: int, max_num_batched_tokens: int, decide: str
    ) -> None:
        super().__init__()
        self._arguments = line, kind, max_num_seqs, max_num_batched_tokens, decide

    def _made(self, application: str) -> Any:
        from deployments.autoscaling.engine_policy import EnginePolicy

        return EnginePolicy.of_line(*self._arguments, application)


class ServeIngressPolicy(_Guarded):
    """Of ingresses.

    Args:
        decide: ``module:function``, called as ``cluster.scaling.ingresses.decide`` is.
    """

    _what = "ingresses"

    def __init__(self, decide: str) -> None:
        super().__init__()
        self._decide = decide

    def _made(self, application: str) -> Any:
        from deployments.autoscaling.ingress_policy import IngressPolicy

        return IngressPolicy.named(application, self._decide)
