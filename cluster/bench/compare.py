"""Two runs side by side."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BiremeError

# Names of figures, what people call them, and whether more is better.
FIGURES: tuple[tuple[str, str, bool | None], ...] = (
    ("completed", "completed", None),
    ("failed", "errors", False),
    ("unfinished", "unfinished", None),
    ("duration", "seconds", None),
    ("request_throughput", "requests/s", True),
    ("output_throughput", "output tokens/s", True),
    ("total_token_throughput", "tokens/s with prompts", True),
    ("slo_share", "share within targets", True),
    *(
        (f"{kind}_{name}_ms", f"{name.upper()} {shown} ms", False)
        for name in ("ttft", "tpot", "itl", "e2el")
        for kind, shown in (("mean", "mean"), ("median", "p50"), ("p95", "p95"), ("p99", "p99"))
    ),
)


@dataclass(frozen=True)
class Row:
    """One figure of two runs.

    Attributes:
        change: of the second over the first, minus 1; None where that is no number.
        is_better: None where neither is better.
    """

    name: str
    first: float
    second: float
    change: float | None
    is_better: bool | None


def read_run(path: Path) -> dict[str, Any]:
    """What ``--json`` wrote, or vLLM's ``--save-result``.

    Raises:
        BiremeError: the file is none of that.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BiremeError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BiremeError(f"{path} is no JSON: {error}") from None
    if not isinstance(run, dict) or not isinstance(run.get("completed"), int) or "output_throughput" not in run:
        raise BiremeError(f"{path} is no run of bireme bench: write one with --json FILE")
    return run


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[Row]:
    """The figures that both have."""
    rows: list[Row] = []
    for key, name, more_is_better in FIGURES:
        a, b = first.get(key), second.get(key)
        if a is None or b is None or not _is_number(a) or not _is_number(b):
            continue
        change = b / a - 1 if a else None
        is_better = None if more_is_better is None or a == b else (b > a) == more_is_better
        rows.append(Row(name, a, b, change, is_better))
    return rows


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What was asked for differently: name, and both values."""
    a, b = first.get("config") or {}, second.get("config") or {}
    return [(name, a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
