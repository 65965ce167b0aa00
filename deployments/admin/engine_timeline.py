"""A recording of one engine's next steps, for ``bireme timeline``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError, RayTaskError

from cluster.api_errors import bad_request, from_engine, shown, unavailable
from cluster.errors import BiremeError
from deployments.admin.cluster_status import RUNNERS

DEFAULT_STEPS = 200
DEFAULT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 120.0
_SHOWN_CHARS = 80


async def engine_timeline(query: Mapping[str, str]) -> bytes:
    """The Chrome trace that GET /v1/timeline answers with, as JSON.

    Args:
        query: ``steps``, ``timeout_s`` (an idle engine runs none) and ``engine``, which may be left out where there is one.

    Raises:
        ApiError: a value is out of range, there is no such engine, or it ended.
    """
    steps = _number(query, "steps", DEFAULT_STEPS, int)
    timeout_s = _number(query, "timeout_s", DEFAULT_TIMEOUT_S, float)
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise bad_request(f"timeout_s: got {timeout_s:g}, allowed are 0 to {MAX_TIMEOUT_S:g}", "timeout_s")
    runners = await RUNNERS.result()
    if not runners:
        raise unavailable("there is no engine yet")
    engine = query.get("engine") or (next(iter(runners)) if len(runners) == 1 else "")
    if engine not in runners:
        raise bad_request(
            f"engine: got {shown(engine) if engine else 'none'}, there are {', '.join(sorted(runners))}", "engine"
        )
    try:
        return await runners[engine].record_timeline.remote(steps, timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, BiremeError):
            raise from_engine(error.cause) from None
        raise
    except RayError as error:
        raise unavailable(f"{engine} ended: {type(error).__name__}") from None


def _number(query: Mapping[str, str], name: str, default: float, kind: type) -> Any:
    text = query.get(name)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        # The engine's own error shows the whole number.
        if len(text) <= _SHOWN_CHARS:
            return kind(text)
    raise bad_request(f"{name}: got {shown(text)}, needs a number", name)
