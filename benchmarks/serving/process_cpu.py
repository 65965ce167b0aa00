"""CPU time of a served application's processes, by what they do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
# What a command line holds, and the kind; the first that fits counts.
_KINDS = (
    ("OpenAiIngress", "ingress"),
    ("LLMServer", "replica"),
    ("StreamingRunner", "runner"),
    ("ServeController", "controller"),
    ("ProxyActor", "Serve's proxy"),
    ("HAProxyManager", "proxy's manager"),
    ("haproxy", "proxy"),
    ("ray", "rest of Ray"),
)


def cpu_seconds(root: int) -> Counter[str]:
    """CPU seconds so far of a process and all below it, by kind."""
    seconds: Counter[str] = Counter()
    for kind, spent_s in _kinds(root):
        seconds[kind] += spent_s
    return seconds


def num_processes(root: int) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(kind for kind, _ in _kinds(root))


def _kinds(root: int) -> Iterator[tuple[str, float]]:
    """Of each process its kind and its CPU seconds."""
    for pid, spent_s in _below(root).items():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended in between
            continue
        yield next((kind for part, kind in _KINDS if part in command), "other"), spent_s


def _below(root: int) -> dict[int, float]:
    """CPU seconds by process id."""
    children: dict[int, list[int]] = {}
    spent_s: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(folder.name)
        children.setdefault(int(fields[1]), []).append(pid)
        spent_s[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
    found, left = {}, [root]
    while left:
        pid = left.pop()
        found[pid] = spent_s.get(pid, 0.0)
        left += children.get(pid, [])
    return found
