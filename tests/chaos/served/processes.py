"""The processes of this test's own Ray cluster, by what they are."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

TITLES = {
    "runner": "ray::StreamingRunner",
    "engine": "ray::ServeReplica:default:LLMServer",
    "ingress": "ray::ServeReplica:default:OpenAiIngress",
    "proxy": "ray::ProxyActor",
    "haproxy": r"\S+/haproxy -db",
    "haproxy manager": "ray::HAProxyManager",
    "controller": "ray::ServeController",
}


def children() -> dict[int, list[int]]:
    """Process id to those of its children, of the whole machine."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text()
            found.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(int(text.split()[0]))
    return found


def descendants(ancestor: int | None = None) -> list[int]:
    """Every process that ``ancestor`` (default: this one) started, directly or not: other clusters on the machine are none of
    this one's."""
    tree, found, queue = children(), [], [ancestor or os.getpid()]
    while queue:
        for pid in tree.get(queue.pop(), []):
            found.append(pid)
            queue.append(pid)
    return found


def kinds() -> dict[int, str]:
    """Processes of the kinds in TITLES, by id."""
    found = {}
    for pid in descendants():
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            for kind, start in TITLES.items():
                if re.match(start, title):
                    found[pid] = kind
    return found


def pids_of(target: str) -> list[int]:
    """Processes of one kind, see TITLES."""
    return sorted(pid for pid, kind in kinds().items() if kind == target)


def state_of(pid: int) -> str:
    """One letter as ``ps`` shows it ("T": stopped); empty if the process is gone or only waits to be collected."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return "" if state in "ZX" else state
    return ""


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def title_of(pid: int) -> str:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
