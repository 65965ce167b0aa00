"""The way of a request: when it was where, each process by its own clock, and what that comes to."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

# In the order in which they are passed. The engine's stand between those of the ingress, which sees its tokens later.
MARKS = {
    "received": "the ingress has the request",
    "begun": "its turn has come",
    "prepared": "read, checked, encoded",
    "sent": "sent to an engine, or given to Serve's handle",
    "replica": "the engine replica has it",
    "runner": "the engine actor has it",
    "scheduled": "it has a slot in the engine",
    "first_step": "the step with its first token was saved",
    "first_token": "the ingress has the first token",
    "last_token": "the ingress has the last token",
}
_BAR_WIDTH, _SHORTEST_BAR = 40, 10
_FIGURES_WIDTH = len(f"{0:10.2f} ms {0:+10.2f}" + 2 * "  ")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def wall_clock(monotonic_s: float) -> float:
    """Seconds since 1970 of a moment of this process's ``time.monotonic``."""
    return time.time() - (time.monotonic() - monotonic_s)


def trace_id_of(traceparent: str | None) -> str:
    """Trace id of a W3C ``traceparent`` header; empty if there is none, or no valid one."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match[1] if match is not None and set(match[1]) != {"0"} else ""


def hops(marks: Mapping[str, float]) -> list[dict[str, Any]]:
    """From mark to mark: ``name`` of the later one, ``what`` it says, ``at_ms`` since the first, ``took_ms`` since the last.

    Args:
        marks: seconds since 1970, some of MARKS. Clocks of two machines may differ: what would begin before its predecessor took
            no time.
    """
    found: list[dict[str, Any]] = []
    begin = latest = None
    for name, what in MARKS.items():
        if name not in marks:
            continue
        at = marks[name] if latest is None else max(latest, marks[name])
        begin = at if begin is None else begin
        took = 0.0 if latest is None else at - latest
        found.append(
            {"name": name, "what": what, "at_ms": round(1e3 * (at - begin), 3), "took_ms": round(1e3 * took, 3)}
        )
        latest = at
    return found


def waterfall(found: list[dict[str, Any]], columns: int = 120) -> list[str]:
    """Lines of ``hops`` for a person, with a bar from mark to mark. The bars show the time up to the first token; what follows is
    as long as the answer. Where less than a short bar fits into ``columns`` there is none."""
    room = columns - _FIGURES_WIDTH - max((len(hop["what"]) for hop in found), default=0)
    if room < _SHORTEST_BAR:
        return [f"{hop['at_ms']:8.2f} ms {hop['what']}" for hop in found]
    width = min(_BAR_WIDTH, room)
    shown_ms = max((hop["at_ms"] for hop in found if hop["name"] != "last_token"), default=0.0)
    lines = []
    for hop in found:
        scale = width / shown_ms if shown_ms else 0.0
        end = min(width, round(hop["at_ms"] * scale))
        begin = min(end, round((hop["at_ms"] - hop["took_ms"]) * scale))
        bar = " " * begin + "#" * (end - begin)
        lines.append(f"{hop['at_ms']:10.2f} ms {hop['took_ms']:+10.2f}  {bar:{width}}  {hop['what']}")
    return lines
