"""What Ray Serve calls in its controller to learn how many engines there are to be.

Serve carries this module there by value, and what it imports by name: it imports nothing of the project until it is there. What
it raised would stop the scaling of every application of the cluster, so it raises nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any

_COMPLAINS_EVERY_S = 60.0


class ServePolicy:
    """A policy of Ray Serve's for one deployment.

    Args:
        line: the setting ``autoscaling`` as the configuration has it.
        kind: model and device of the engines.
        max_num_seqs: slots of an engine.
        decide: ``module:function``, called as ``cluster.scaling.policy.decide`` is.
    """

    def __init__(self, line: dict[str, Any], kind: str, max_num_seqs: int, decide: str) -> None:
        self._arguments = line, kind, max_num_seqs, decide
        self._policy: Any = None
        self._complained_at = -_COMPLAINS_EVERY_S

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many engines there are to be; as many as now where that cannot be said. The state is kept elsewhere: Serve's own is
        lost whenever its controller starts again."""
        lowest, highest = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        target = context.target_num_replicas
        try:
            if self._policy is None:
                from deployments.autoscaling.engine_policy import EnginePolicy

                self._policy = EnginePolicy.of_line(*self._arguments, context.app_name or "")
            target = int(self._policy.target(context))
        except Exception:
            if time.monotonic() - self._complained_at > _COMPLAINS_EVERY_S:
                self._complained_at = time.monotonic()
                logging.getLogger("ray.serve").exception("the scaling policy failed; as many engines stay as there are")
        return max(lowest, min(highest, target)), {}
