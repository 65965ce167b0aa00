"""What ``bireme top`` shows of two looks at a server: pure text from numbers, for any width from 60 columns on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.observability.start_stages import start_line

_MAX_EVENTS = 5
_BAR = 10


class TopView:
    """Remembers the look before, from which rates follow, and what has happened since the first."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._states: dict[str, str] | None = None
        self._looked_at = 0.0
        self._events: deque[str] = deque(maxlen=_MAX_EVENTS)

    def show(self, title: str, status: Mapping[str, Any], now: float, clock: str) -> RenderableType:
        """The view of ``status`` (GET /v1/status).

        Args:
            now: seconds, of a clock that never goes back.
            clock: the time of day, for events.
        """
        engines = status["engines"]
        self._note_events(status, clock)
        rates = self._rates(engines, now)
        total = sum(rate for rate in rates.values() if rate is not None)
        known = any(rate is not None for rate in rates.values())
        head = [title, f"{sum(engine['state'] == 'running' for engine in engines)} of {len(engines)} engines ready"]
        head.append(f"{total:.0f} tokens/s" if known else "- tokens/s")
        parts: list[RenderableType] = [Text("  ".join(head), style="bold"), Text(_load_line(status["load"]))]
        parts += [Text(line) for line in _target_lines(status["load"])]
        parts += [Text(""), _table(engines, rates)]
        for engine in engines:
            if "start" in engine and engine["state"] == "loading" and (line := start_line(engine["start"])):
                parts.append(Text(f"{engine['engine_id']}: {line}"))
        if self._events:
            parts += [Text(""), *(Text(event, style="yellow") for event in self._events)]
        return Group(*parts)

    def _rates(self, engines: list[dict[str, Any]], now: float) -> dict[str, float | None]:
        """Tokens a second by engine since the look before; None for one that was not there then."""
        seconds, rates = now - self._looked_at, {}
        tokens = {
            engine["engine_id"]: engine["num_generated_tokens"]
            for engine in engines
            if "num_generated_tokens" in engine
        }
        for engine_id, count in tokens.items():
            before = self._tokens.get(engine_id)
            rates[engine_id] = None if before is None or seconds <= 0 else max(0, count - before) / seconds
        self._tokens, self._looked_at = tokens, now
        return rates

    def _note_events(self, status: Mapping[str, Any], clock: str) -> None:
        states = {engine["engine_id"]: engine["state"] for engine in status["engines"]}
        # An older server has those of the ingress that answers.
        ingresses = status.get("ingresses") or {"": {"events": status.get("events", {})}}
        for name, more in sorted(self._more_events(ingresses).items()):
            self._events.append(f"{clock}  {name.removeprefix('bireme_')} +{more}")
        if self._states is not None:
            for engine_id in sorted({*states, *self._states}):
                before, after = self._states.get(engine_id), states.get(engine_id)
                if before != after:
                    self._events.append(f"{clock}  {engine_id} {before or 'new'} -> {after or 'gone'}")
        self._states = states

    def _more_events(self, ingresses: Mapping[str, Any]) -> Counter[str]:
        """What the ingresses have counted since the look before: each by itself, because one may be silent for a while. What one
        counted before the first look at it is nothing new."""
        more: Counter[str] = Counter()
        for name, found in ingresses.items():
            if (before := self._counts.get(name)) is not None:
                more += Counter(found["events"]) - Counter(before)
            self._counts[name] = found["events"]
        return more


def _load_line(load: Mapping[str, Any]) -> str:
    return (
        f"{load['num_running']} sequences ({load['num_held']} held), {load['arrivals_per_s']:.1f}/s, "
        f"{load['prompt_tokens_per_s']:.0f} prompt tokens/s"
    )


def _target_lines(load: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, what in (("ttft", "first token"), ("tpot", "token time")):
        if (target := load.get(name)) is not None:
            share = target["recent_share"]
            whole = target["num_met"] + target["num_missed"]
            shown = "-" if share is None else f"{100 * share:.0f} %"
            lines.append(f"{what} within target: {shown} lately, {target['num_met']} of {whole}")
    return lines


def _table(engines: list[dict[str, Any]], rates: Mapping[str, float | None]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("engine", overflow="ellipsis", no_wrap=True, max_width=12)
    table.add_column("state", overflow="ellipsis", no_wrap=True, max_width=10)
    # All of it is 60 columns at most: names and states are cut, numbers are not.
    for name, width in (("run", 4), ("wait", 4), ("tok/s", 6)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("KV", no_wrap=True, min_width=_BAR + 6)
    for engine in engines:
        row = [engine["engine_id"].removeprefix("engine-"), engine["state"]]
        if "num_blocks" in engine:
            rate = rates.get(engine["engine_id"])
            used = (engine["num_blocks"] - engine["num_blocks_available"]) / engine["num_blocks"]
            bar = "#" * round(_BAR * used) + "." * (_BAR - round(_BAR * used))
            row += [str(engine["num_requests_running"]), str(engine["num_requests_waiting"])]
            row += ["-" if rate is None else f"{rate:.0f}", f"{bar} {100 * used:3.0f} %"]
        table.add_row(*(Text(cell) for cell in row))
    return table
