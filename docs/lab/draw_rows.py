"""Draw tokens per second by how many rows decode together.

    python docs/lab/draw_rows.py RECORD.json PICTURE.svg

The record comes from ``python -m benchmarks.bench_weight_formats --json``. Python's standard library is enough.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 56, 150, 52, 44
COLOURS = {"stored": "#4e79a7", "float32": "#f28e2b", "llama.cpp": "#59a14f"}


def draw(record: dict[str, Any]) -> str:
    """The picture as SVG: a line a contender, rows on a scale that doubles."""
    counts, speeds = record["rows"], record["tokens_per_second"]
    of_rows = [speeds[f"decode, {count} rows"] for count in counts]
    lines = {name: [one[name] for one in of_rows] for name in COLOURS if name in of_rows[0]}
    step = _step(max(max(line) for line in lines.values()))
    top = step * math.ceil(max(max(line) for line in lines.values()) / step)
    spread = math.log2(counts[-1] / counts[0]) or 1.0

    def x_of(count: int) -> float:
        return LEFT + math.log2(count / counts[0]) / spread * (WIDTH - LEFT - RIGHT)

    def y_of(speed: float) -> float:
        return TOP + (1 - speed / top) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in range(round(top / step) + 1):
        y = y_of(tick * step)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8883"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
    for count in counts:
        parts.append(f'<text x="{x_of(count):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{count}</text>')
    for name, line in lines.items():
        points = " ".join(f"{x_of(count):.1f},{y_of(speed):.1f}" for count, speed in zip(counts, line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        for count, speed in zip(counts, line):
            dot = f'<circle cx="{x_of(count):.1f}" cy="{y_of(speed):.1f}" r="3" fill="{COLOURS[name]}">'
            parts.append(f"{dot}<title>{escape(name)}, {count} rows: {speed:.0f} tokens/s</title></circle>")
        label = f"{name} {line[-1]:.0f}"
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{y_of(line[-1]) + 4:.1f}" fill="{COLOURS[name]}">{escape(label)}</text>'
        )
    title = "Tokens per second by rows that decode together"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{title}">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            f'<text x="8" y="18" font-weight="bold" font-size="14">{title}</text>',
            f'<text x="8" y="36">{escape(record["machine"])}</text>',
            *parts,
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">rows of a step</text>',
            "</svg>\n",
        ]
    )


def _step(most: float) -> float:
    """Distance of the lines: 1, 2 or 5 times a power of ten, three to six of them."""
    rough = most / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
