"""CPU time of processes: of one, of its threads, and of a served application's by what they do."""

from __future__ import annotations

import os
import time
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
    try:
        # The clock of clock_getcpuclockid(3), which Python has not: of all threads that it has or had, to the nanosecond.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # no such process, or a kernel that shows nobody another's clock
        fields = _stat(Path(f"/proc/{pid}"))
        return (int(fields[11]) + int(fields[12])) / _TICKS


def clock_step_s() -> float:
    """What ``cpu_seconds`` cannot tell apart: kernels have such clocks that go on once a tick only."""
    pid, steps = os.getpid(), []
    while len(steps) < 3:
        before = now = cpu_seconds(pid)
        while now == before:
            now = cpu_seconds(pid)
        steps.append(now - before)
    return min(steps)


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
            spent_s = cpu_seconds(int(folder.name))
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
            pid, parent = int(folder.name), int(_stat(folder)[1])
            spent_s[pid] = cpu_seconds(pid)
        except OSError:
            continue
        children.setdefault(parent, []).append(pid)
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


def _stat(folder: Path) -> list[bytes]:
    """What follows the name, which may hold blanks and brackets: 1 is the parent, 11 and 12 are ticks here and in the kernel."""
    return (folder / "stat").read_bytes().rpartition(b")")[2].split()
