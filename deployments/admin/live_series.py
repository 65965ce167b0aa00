"""Prometheus text without what dead processes counted.

Ray's agent (2.60) forgets a gauge that nobody has reported for twenty seconds, and a counter or histogram never. Each process has
a few hundred series, named by its worker id.
"""

from __future__ import annotations

import re

_WORKER = re.compile(rb'[{,]WorkerId="([^"]+)"')
_TYPE = b"# TYPE "
_GAUGE = b" gauge"


def without_dead_workers(text: bytes) -> bytes:
    """The text without the series of workers that report no gauge any more; with all of them if no worker reports one."""
    lines = text.splitlines(keepends=True)
    live = _live_workers(lines)
    if not live:
        return text
    return b"".join(line for line in lines if (worker := _worker_of(line)) is None or worker in live)


def _live_workers(lines: list[bytes]) -> set[bytes]:
    """Every process of Ray reports some gauges whether anything happens there or not."""
    found, in_gauge = set(), False
    for line in lines:
        if line.startswith(_TYPE):
            in_gauge = line.rstrip().endswith(_GAUGE)
        elif in_gauge and (worker := _worker_of(line)) is not None:
            found.add(worker)
    return found


def _worker_of(line: bytes) -> bytes | None:
    """None of a comment, and of what belongs to a node and not to a worker."""
    if line.startswith(b"#"):
        return None
    found = _WORKER.search(line)
    return None if found is None else found[1]
