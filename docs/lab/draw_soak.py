"""Draw what a soak saw: memory, descriptors, threads, files and metrics over time, with the faults.

    python docs/lab/draw_soak.py PICTURE.svg RECORD.json

The record comes from ``python -m tests.soak.run --json``; run this from the project's root.
"""

from __future__ import annotations

import math
import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.soak.growth import Record

WIDTH, TOP = 960, 56
COLUMNS, GAP, LEFT, RIGHT = 2, 24, 44, 132
PANEL_HEIGHT, PLOT_HEIGHT = 196, 140
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#edc948", "#ff9da7", "#555555")
KINDS = ("runner", "ingress", "engine", "controller", "proxy", "haproxy manager", "haproxy", "agent", "gcs", "raylet")
FILES = {
    "token sockets": "token sockets",
    "pid files": "pid files",
    "files of the run folder": "run folder",
    "other files of the session": "session, not logs",
    "zombies": "zombies",
    "avoided engines of an ingress": "avoided engines",
}
# Title and, by name in the record, what is drawn with its label.
PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Memory that a process has for itself, MiB", {f"memory {kind}": kind for kind in KINDS}),
    ("File descriptors", {f"descriptors {kind}": kind for kind in (*KINDS, "log monitor")}),
    ("Threads", {f"threads {kind}": kind for kind in KINDS}),
    ("Files and others that are left behind", FILES),
    (
        "Log files; actors and placement groups that Ray knows, dead ones too",
        {"log files": "log files", "actors in the GCS": "actors", "placement groups in the GCS": "groups"},
    ),
    ("Lines of /metrics", {"lines of /metrics": "lines"}),
)


def draw(record: Record) -> str:
    """The picture as SVG: a panel a kind of count, a line a process or file, a tick a fault."""
    rows = math.ceil(len(PANELS) / COLUMNS)
    height = TOP + rows * PANEL_HEIGHT
    width = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    parts = []
    for number, (title, names) in enumerate(PANELS):
        x, y = (number % COLUMNS) * (width + GAP), TOP + number // COLUMNS * PANEL_HEIGHT
        parts += [f'<g transform="translate({x:.1f} {y})">', *panel(record, title, names, width), "</g>"]
    title = f"{record.faults[-1]:,} faults and {record.requests[-1]:,} requests in {record.seconds[-1]:.0f} seconds"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="11" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="8" y="18" font-weight="bold" font-size="14">{escape(title)}</text>',
            '<text x="8" y="35">of a kind of process the one that has most; ticks below: a fault</text>',
            *parts,
            "</svg>\n",
        ]
    )


def panel(record: Record, title: str, names: dict[str, str], width: float) -> list[str]:
    """One panel; its origin is its upper left corner."""
    series = {label: record.counts[name] for name, label in names.items() if name in record.counts}
    most = max((one for values in series.values() for one in values if one is not None), default=1.0)
    step = step_of(most)
    top = max(step, math.ceil(most / step) * step)
    end_s, plot = max(record.seconds[-1], 1.0), width - LEFT - RIGHT

    def x_of(second: float) -> float:
        return LEFT + second / end_s * plot

    def y_of(value: float) -> float:
        return 24 + (1 - value / top) * PLOT_HEIGHT

    parts = [f'<text x="8" y="14" font-weight="bold">{escape(title)}</text>']
    for tick in range(round(top / step) + 1):
        y = y_of(tick * step)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + plot:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8883"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
    for before, now, second in zip([0, *record.faults], record.faults, record.seconds):
        if now > before:
            at = x_of(second)
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y_of(0)}" y2="{y_of(0) + 4}" stroke="#c0392b"/>')
    for share in (0, 0.5, 1):
        second = share * end_s
        parts.append(f'<text x="{x_of(second):.1f}" y="{y_of(0) + 16:.1f}" text-anchor="middle">{second:.0f} s</text>')
    labels = []
    for number, (label, values) in enumerate(series.items()):
        points = [(x_of(s), y_of(v)) for s, v in zip(record.seconds, values) if v is not None]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        last = next(one for one in reversed(values) if one is not None)
        labels.append((points[-1][1], f"{label} {last:.0f}", colour))
    for y, (_, text, colour) in zip(spread([y for y, *_ in sorted(labels)]), sorted(labels)):
        parts.append(f'<text x="{LEFT + plot + 6:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(text)}</text>')
    return parts


def spread(places: list[float]) -> list[float]:
    """Heights of labels, from above, moved apart so that they can be read."""
    line, bottom = 12.0, 24.0 + PLOT_HEIGHT
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + line) if found else place)
    for index in range(len(found) - 1, -1, -1):
        found[index] = min(found[index], bottom - line * (len(found) - 1 - index))
    return found


def step_of(most: float) -> float:
    """Distance of the lines: 1, 2 or 5 times a power of ten, three to six of them."""
    rough = max(most, 1.0) / 5
    power = 10 ** math.floor(math.log10(rough))
    return max(1.0, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    Path(sys.argv[1]).write_text(draw(Record.from_json(Path(sys.argv[2]).read_text())))


if __name__ == "__main__":
    main()
