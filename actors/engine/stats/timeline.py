"""A recording of engine steps as a Chrome trace: what host and device did, on one clock, and where the device had nothing to do.

The engine and its steps take their stamps anyway; a recording copies them. Open the JSON in https://ui.perfetto.dev.

| row | slices |
|---|---|
| host | each pass of the engine, and in it: plan and stage and launch N, then wait for, save and update N-1 |
| device | each step from its first to its last kernel; arrows lead there from its launch |
| device idle | each gap between two device steps, and how much of it the device waited for the launch |
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import Future
from itertools import pairwise
from typing import Any, NamedTuple

from actors.runner.step_executor import LaunchedStep
from cluster.errors import InvalidRequestError

MAX_STEPS = 10_000

HOST, DEVICE, IDLE = 1, 2, 3
_ROWS = {HOST: "host", DEVICE: "device", IDLE: "device idle"}


class Span(NamedTuple):
    """From and to, in seconds of the engine's clock."""

    start: float
    end: float


class Pass(NamedTuple):
    """One call of ``Engine.step``: it plans and launches one step and saves the one before; either may be missing."""

    whole: Span
    plan: Span
    launched: int | None
    saved: int | None


class StepTimes(NamedTuple):
    """One saved step."""

    step: int
    num_tokens: int
    stage: Span
    launch: Span
    wait: Span
    save: Span
    update: Span
    device: Span


class StepTimeline:
    """Up to ``num_steps`` saved steps; memory is bounded by that.

    Attributes:
        full: done, with this object as its result, when the last step has been recorded.
    """

    def __init__(self, num_steps: int, device_name: str = "") -> None:
        if not 1 <= num_steps <= MAX_STEPS:
            raise InvalidRequestError(f"steps: got {num_steps}, allowed are 1 to {MAX_STEPS}", "steps")
        self.num_steps = num_steps
        self.device_name = device_name
        self.passes: list[Pass] = []
        self.steps: list[StepTimes] = []
        self.full: Future[StepTimeline] = Future()

    def add(self, whole: Span, plan: Span, launched: int | None, saved: int | None, out: LaunchedStep | None) -> None:
        """Enter one pass; ``out`` is the step that it saved, ``update`` lasted from then to the pass's end."""
        self.passes.append(Pass(whole, plan, launched, saved))
        if saved is None or out is None:
            return
        self.steps.append(
            StepTimes(
                saved,
                out.num_tokens,
                Span(out.staged_from, out.launched_at),
                Span(out.launched_at, out.enqueued_at),
                Span(out.waited_from, out.waited_at),
                Span(out.waited_at, out.saved_at),
                Span(out.saved_at, whole.end),
                Span(out.device_start, out.device_end),
            )
        )
        if len(self.steps) >= self.num_steps and not self.full.done():
            self.full.set_result(self)

    def gaps(self) -> list[Span]:
        """Between device steps in a row; empty ones left out."""
        pairs = pairwise(sorted((s.device for s in self.steps), key=lambda span: span.start))
        return [Span(a.end, b.start) for a, b in pairs if b.start > a.end]

    def summary(self) -> dict[str, Any]:
        """Counts, and times in microseconds: what the device computed, what it idled between the first and the last step."""
        busy = [s.device.end - s.device.start for s in self.steps]
        gaps = [gap.end - gap.start for gap in self.gaps()]
        return {
            "device": self.device_name,
            "steps": len(self.steps),
            "device_busy_us": _us(sum(busy)),
            "device_idle_us": _us(sum(gaps)),
            "median_device_step_us": _us(statistics.median(busy)) if busy else 0.0,
            "median_gap_us": _us(statistics.median([*gaps, *[0.0] * (len(busy) - 1 - len(gaps))])) if gaps else 0.0,
        }

    def chrome_trace(self) -> dict[str, Any]:
        """The recording in Chrome's trace event format; times in microseconds since its first stamp."""
        # A step that was launched before the recording began lies before its first pass.
        stamps = [p.whole.start for p in self.passes] + [s.stage.start for s in self.steps]
        origin = min([*stamps, *(s.device.start for s in self.steps)], default=0.0)
        trace = _Trace(origin)
        for one in self.passes:
            trace.add(HOST, "pass", one.whole, launched=one.launched, saved=one.saved)
            if one.launched is not None:
                trace.add(HOST, "plan", one.plan, step=one.launched)
        for step in self.steps:
            for name in ("stage", "launch", "wait", "save", "update"):
                trace.add(HOST, name, getattr(step, name), step=step.step)
            trace.add(DEVICE, f"step {step.step}", step.device, step=step.step, num_tokens=step.num_tokens)
            trace.arrow(step.step, step.launch.start, step.device.start)
        launched_at = {step.device.start: step.launch.end for step in self.steps}
        for gap in self.gaps():
            late = max(0.0, min(launched_at[gap.end], gap.end) - gap.start)
            trace.add(IDLE, "idle", gap, waited_for_launch_us=_us(late))
        return {"displayTimeUnit": "ms", "otherData": self.summary(), "traceEvents": trace.events()}

    def chrome_trace_json(self) -> bytes:
        """``chrome_trace`` as JSON. One event at a time: within one call of the encoder no other thread runs."""
        trace = self.chrome_trace()
        events = ",\n".join([json.dumps(event) for event in trace.pop("traceEvents")])
        return f'{json.dumps(trace)[:-1]}, "traceEvents": [{events}]}}'.encode()


class _Trace:
    def __init__(self, origin: float) -> None:
        self._origin = origin
        self._slices: list[dict[str, Any]] = []
        self._arrows: list[dict[str, Any]] = []

    def add(self, row: int, name: str, span: Span, **args: Any) -> None:
        start, end = _us(span.start - self._origin), _us(span.end - self._origin)
        event = {
            "ph": "X",
            "name": name,
            "cat": _ROWS[row],
            "pid": 1,
            "tid": row,
            "ts": start,
            "dur": round(end - start, 3),
        }
        self._slices.append({**event, "args": args})

    def arrow(self, number: int, start: float, end: float) -> None:
        common = {"name": "launch", "cat": "launch", "id": number, "pid": 1}
        self._arrows.append({**common, "ph": "s", "tid": HOST, "ts": _us(start - self._origin)})
        self._arrows.append({**common, "ph": "f", "bp": "e", "tid": DEVICE, "ts": _us(end - self._origin)})

    def events(self) -> list[dict[str, Any]]:
        """Names of process and rows, then slices in order of time, an enclosing one before what it encloses."""
        names = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "engine"}}]
        for row, name in _ROWS.items():
            names.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}})
            names.append({"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": row, "args": {"sort_index": row}})
        return [*names, *sorted(self._slices, key=lambda e: (e["ts"], -e["dur"])), *self._arrows]


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
