"""CPU time of processes, of ``/proc``: of one, of its threads, and of a served application's by what they do."""

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


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the process has used since it began; OSError if there is none."""
    return _parent_and_cpu(Path(f"/proc/{pid}"))[1]


def thread_cpu_seconds(pid: int, thread: int) -> float:
    """As ``cpu_seconds`` of one thread, by the kernel's id; to the nanosecond, not to the tick."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def cpu_by_kind(root: int) -> Counter[str]:
    """CPU seconds so far of a process and all below it, by kind."""
    seconds: Counter[str] = Counter()
    for kind, spent_s in _kinds(root):
        seconds[kind] += spent_s
    return seconds


def cpu_by_name() -> dict[str, float]:
    """CPU seconds so far of Ray's named workers and the proxy on this machine, by name."""
    seconds: dict[str, float] = {}
    for folder in _process_folders():
        try:
            title = _command_line(folder).strip().split(" ")[0]
            spent_s = _parent_and_cpu(folder)[1]
        except OSError:  # it ended in between
            continue
        if title.startswith("ray::") or "haproxy" in title:
            name = title.rpartition("/")[2].rpartition(":")[2].rpartition(".")[0] or title
            seconds[name] = seconds.get(name, 0.0) + spent_s
    return seconds


def num_processes(root: int) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(kind for kind, _ in _kinds(root))


def _kinds(root: int) -> Iterator[tuple[str, float]]:
    """Of each process its kind and its CPU seconds."""
    for pid, spent_s in _below(root).items():
        try:
            command = _command_line(Path(f"/proc/{pid}"))
        except OSError:  # it ended in between
            continue
        yield next((kind for part, kind in _KINDS if part in command), "other"), spent_s


def _below(root: int) -> dict[int, float]:
    """CPU seconds by process id."""
    children: dict[int, list[int]] = {}
    spent_s: dict[int, float] = {}
    for folder in _process_folders():
        try:
            parent, spent = _parent_and_cpu(folder)
        except OSError:
            continue
        pid = int(folder.name)
        children.setdefault(parent, []).append(pid)
        spent_s[pid] = spent
    found, left = {}, [root]
    while left:
        pid = left.pop()
        found[pid] = spent_s.get(pid, 0.0)
        left += children.get(pid, [])
    return found


def _process_folders() -> Iterator[Path]:
    return Path("/proc").glob("[0-9]*")


def _command_line(folder: Path) -> str:
    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _parent_and_cpu(folder: Path) -> tuple[int, float]:
    """The parent's process id, and CPU seconds in the process and in the kernel for it."""
    # A name may hold blanks and brackets; what follows it does not.
    fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS
