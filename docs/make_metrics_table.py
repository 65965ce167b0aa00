"""Write the table of docs/metrics.md from ``cluster.observability.metrics``, so that the two cannot differ.

``python docs/make_metrics_table.py`` rewrites the part of that page between the two markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.observability.metrics import (  # noqa: E402 (the script runs without an installed package)
    CONTINUITY_METRICS,
    ENGINE_METRICS,
    INGRESS_METRICS,
    ROUTING_METRICS,
    SPARE_METRICS,
    Metric,
)
from docs.marked_part import with_part  # noqa: E402

PAGE = ROOT / "docs" / "metrics.md"
START = "<!-- metrics table: written by docs/make_metrics_table.py -->"
END = "<!-- end of metrics table -->"
# By who records them.
GROUPS = {
    "engine": ENGINE_METRICS,
    "ingress": (*INGRESS_METRICS, *ROUTING_METRICS, *CONTINUITY_METRICS),
    "node": SPARE_METRICS,
}


def exported(metric: Metric) -> str:
    """Its name at ``/metrics``; of a histogram, what its series begin with."""
    return f"ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}"


def metrics_table() -> str:
    """The table in Markdown, one row a metric."""
    return "\n".join(["| name | kind | of | labels of its own | meaning |", "|---|---|---|---|---|", *_rows()])


def _rows() -> Iterator[str]:
    for group, metrics in GROUPS.items():
        for metric in metrics:
            labels = ", ".join(f"`{tag}`" for tag in metric.tags)
            yield f"| `{exported(metric)}` | {metric.kind} | {group} | {labels} | {metric.description} |"


def with_table(page: str) -> str:
    """``page`` with the part between the markers replaced by the present table."""
    return with_part(page, START, END, metrics_table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
