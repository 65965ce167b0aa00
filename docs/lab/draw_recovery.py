"""Draw how long streams waited after each kind of fault, from reports of the chaos suite.

    python docs/lab/draw_recovery.py PICTURE.svg REPORT.json [REPORT.json ...]

Reports come from ``python -m tests.chaos.run --json``; run this from the project's root.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.chaos.report import DEATH_TARGET_S, HANG_TARGET_S, Report, target_s, waits_by_kind

WIDTH, LEFT, RIGHT, ROW, TOP = 960, 330, 24, 20, 64
LONGEST_S = 5.0
# What takes nothing away is not in the picture.
HARMLESS = ("clients", "object store")
COLOURS = {"died": "#4e79a7", "hung": "#f28e2b"}


def x_of(seconds: float) -> float:
    """Where a wait stands; longer ones than the picture has room for stand at its edge."""
    return LEFT + min(seconds, LONGEST_S) / LONGEST_S * (WIDTH - LEFT - RIGHT)


def draw(report: Report) -> str:
    """The picture as SVG: a row a kind of fault, a dot a stream that waited."""
    rows = [(kind, *found) for kind, found in waits_by_kind(report).items() if not kind.startswith(HARMLESS)]
    parts: list[str] = []
    y = TOP
    for name, target in (("died", DEATH_TARGET_S), ("hung", HANG_TARGET_S)):
        first = y
        for kind, count, alone, overlapped in rows:
            if target_s(kind) != target:
                continue
            parts.append(f'<text x="{LEFT - 12}" y="{y + 14}" text-anchor="end">{escape(kind)}, {count} times</text>')
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + 10}" y2="{y + 10}" stroke="#8883"/>')
            for waits, fill in ((overlapped, "#fff"), (alone, COLOURS[name])):
                for number, wait in enumerate(sorted(waits)):
                    at = y + 10 + (number % 5 - 2) * 2.4
                    parts.append(
                        f'<circle cx="{x_of(wait):.1f}" cy="{at:.1f}" r="3" fill="{fill}" fill-opacity="0.75" '
                        f'stroke="{COLOURS[name]}"><title>{escape(kind)}: {wait:.2f} s</title></circle>'
                    )
            y += ROW
        x = x_of(target)
        parts.append(
            f'<path d="M{x:.1f} {first - 4} V{y + 2}" stroke="#e15759" stroke-width="1.5" stroke-dasharray="5 3"/>'
        )
        parts.append(f'<text x="{x + 5:.1f}" y="{first + 8}" fill="#c0392b">at most {target:g} s</text>')
        y += 16
    for second in range(int(LONGEST_S) + 1):
        parts.append(f'<text x="{x_of(second):.1f}" y="{y + 4}" text-anchor="middle">{second} s</text>')
    faults, requests = sum(report.faults.values()), sum(report.ended.values())
    title = f"From a fault to a stream's next token: {faults:,} faults, {requests:,} requests"
    lost = f"{len(report.lost)} requests lost, {len(report.changed)} changed, {len(report.leaks)} things left behind"
    legend = "a dot: a stream that waited longer than 0.25 s; hollow: another fault happened meanwhile"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 16}" font-family="sans-serif" font-size="12" '
        f'role="img" aria-label="{escape(title)}">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{WIDTH}" height="{y + 16}" fill="#fff"/>',
            f'<text x="8" y="18" font-weight="bold" font-size="14">{escape(title)}</text>',
            f'<text x="8" y="36">{escape(lost)}; {escape(legend)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    report = Report.total(Report.from_json(Path(name).read_text()) for name in sys.argv[2:])
    Path(sys.argv[1]).write_text(draw(report))


if __name__ == "__main__":
    main()
