"""Where the served applications of the end-to-end tests compute: $BIREME_TEST_DEVICE, by default as ever (a CPU's settings).

On a GPU all applications of a test run share one, so each reserves a part of it and has a KV cache of a fixed size; and
``batch_invariant`` makes answers comparable bit by bit, as a CPU's always are.
"""

from __future__ import annotations

import os
from typing import Any

DEVICE = os.environ.get("BIREME_TEST_DEVICE", "cpu")
if DEVICE not in ("cpu", "gpu"):
    raise ValueError(f"BIREME_TEST_DEVICE: got {DEVICE}, needs cpu or gpu")

# A GPU computes tokens of the default model so many times as fast as two cores, roughly.
_SPEED = 16


def served_on_device(**settings: Any) -> dict[str, Any]:
    """``settings`` of an application, and on a GPU what it needs besides."""
    if DEVICE == "cpu":
        return settings
    return {"device": "gpu", "runner_num_gpus": 0.2, "batch_invariant": True, "num_kv_blocks": 2048, **settings}


def lasting(num_tokens: int) -> int:
    """Tokens of an answer that takes as long as ``num_tokens`` take a CPU."""
    return num_tokens if DEVICE == "cpu" else _SPEED * num_tokens
