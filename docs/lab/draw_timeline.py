"""Draw some steps of a recorded timeline as a picture: all of them, and below the moment between two steps enlarged.

    python docs/lab/draw_timeline.py TRACE.json PICTURE.svg [--first 10] [--steps 3] [--around 1.0]

TRACE.json comes from ``bireme timeline`` or a benchmark's ``--trace``. Python's standard library is enough.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, ROW, GAP = 960, 90, 30, 8
COLOURS = {
    "plan": "#4e79a7", "stage": "#59a14f", "launch": "#f28e2b", "wait": "#d7d7d7", "save": "#b07aa1", "update": "#9c755f",
    "device": "#76b7b2", "idle": "#e15759",
}  # fmt: skip
MEANING = {
    "plan": "choose the next step's work", "stage": "write what the device reads of it", "launch": "put it into the queue",
    "wait": "for the step before", "save": "read its tokens", "update": "hand them on", "idle": "device without work",
}  # fmt: skip


class Panel:
    """Rows of slices over one window of time."""

    def __init__(self, top: int, start: float, end: float) -> None:
        self.top, self.start, self.end = top, start, end
        self.parts: list[str] = []
        self.height = 3 * (ROW + GAP) + 22

    def x(self, at: float) -> float:
        return LEFT + (min(max(at, self.start), self.end) - self.start) / (self.end - self.start) * (WIDTH - LEFT - 36)

    def slice(self, row: int, kind: str, event: dict[str, Any], label: str) -> None:
        start, end = event["ts"], event["ts"] + event["dur"]
        if end <= self.start or start >= self.end:
            return
        x, y = self.x(start), self.top + row * (ROW + GAP)
        width = max(self.x(end) - x, 1.0)
        title = f"{label}: {event['dur'] / 1e3:.3f} ms"
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" rx="2" fill="{COLOURS[kind]}">'
            f"<title>{escape(title)}</title></rect>"
        )
        if width > 7 * len(label) + 6:
            self.parts.append(f'<text x="{x + width / 2:.1f}" y="{y + 19}" text-anchor="middle">{escape(label)}</text>')

    def finish(self) -> list[str]:
        """Names of the rows and a scale under them."""
        for row, name in enumerate(("host", "device", "idle")):
            self.parts.append(f'<text x="8" y="{self.top + row * (ROW + GAP) + 19}">{name}</text>')
        bottom, span = self.top + 3 * (ROW + GAP), self.end - self.start
        tick = next(t for t in (5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6) if span / t <= 12)
        for number in range(int(span // tick) + 1):
            x = self.x(self.start + number * tick)
            self.parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{self.top - 4}" y2="{bottom}" stroke="#8884"/>')
            last = " ms" if number == int(span // tick) else ""
            self.parts.append(
                f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="middle">{number * tick / 1e3:g}{last}</text>'
            )
        return self.parts


def draw(trace: dict[str, Any], first: int, steps: int, around_ms: float) -> str:
    """The picture as SVG."""
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    device = [event for event in events if event["cat"] == "device"]
    shown = device[first : first + steps]
    if len(shown) < 2:
        raise SystemExit(f"the trace has {len(device)} steps; --first {first} leaves fewer than two")
    span = shown[-1]["ts"] + shown[-1]["dur"] - shown[0]["ts"]
    boundary = shown[1]["ts"]
    whole = Panel(30, shown[0]["ts"] - 0.02 * span, shown[0]["ts"] + 1.02 * span)
    zoom = Panel(30 + whole.height + 46, boundary - 500 * around_ms, boundary + 500 * around_ms)
    for event in events:
        row = {"host": 0, "device": 1, "device idle": 2}[event["cat"]]
        name, step = event["name"], event["args"].get("step")
        if name == "pass":
            continue
        label = f"{name} {step}" if row == 0 else name
        for panel in (whole, zoom):
            panel.slice(row, name if row != 1 else "device", event, label)
    legend, x, y = [], 8, zoom.top + zoom.height + 22
    for name, meaning in MEANING.items():
        if x + 7 * len(name + meaning) > WIDTH - 40:
            x, y = 8, y + 22
        legend.append(f'<rect x="{x}" y="{y - 11}" width="13" height="13" rx="2" fill="{COLOURS[name]}"/>')
        legend.append(f'<text x="{x + 18}" y="{y}">{name}: {meaning}</text>')
        x += 48 + int(6.4 * len(name + meaning))
    edge = zoom.x(zoom.start), zoom.x(zoom.end), whole.x(zoom.start), whole.x(zoom.end)
    above, below = whole.top + 2 * (ROW + GAP) + ROW, zoom.top - 6
    lines = (
        f'<path d="M{edge[2]:.1f} {whole.top - 4} V{above} L{edge[0]:.1f} {below} M{edge[3]:.1f} {whole.top - 4} V{above} '
        f'L{edge[1]:.1f} {below}" fill="none" stroke="#888" stroke-dasharray="3 3"/>'
    )
    device_name = trace["otherData"]["device"]
    title = f"{len(shown)} steps on {device_name.replace('cpu', 'the CPU')}, and the moment between two of them"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" font-family="sans-serif" font-size="12" '
        f'role="img" aria-label="{escape(title)}">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{WIDTH}" height="{y + 14}" fill="#fff"/>',
            f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>',
            *whole.finish(),
            lines,
            *zoom.finish(),
            *legend,
            "</svg>\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--first", type=int, default=10, help="index of the first step in the trace")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--around", type=float, default=1.0, help="milliseconds in the lower part")
    options = parser.parse_args()
    trace = json.loads(options.trace.read_text())
    options.picture.write_text(draw(trace, options.first, options.steps, options.around))


if __name__ == "__main__":
    main()
