"""One look at everything of a running application that could grow: processes, files, tables and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import ray
from ray._private import worker
from ray._private.state import actors
from ray.util import placement_group_table

from deployments.start.run_files.private_folder import private_base
from tests.chaos.served.ingresses import ask_ingresses
from tests.chaos.served.processes import TITLES, descendants, state_of
from tests.soak.pid_files import LeftPidFiles

# What Ray itself runs on a node.
RAY_TITLES = {
    "gcs": r"\S*/gcs_server ",
    "raylet": r"\S*/raylet/raylet ",
    "agent": r"ray::DashboardAgent|\S+ \S*/dashboard/agent\.py",
    "log monitor": r"\S+ \S+ \S*/log_monitor\.py|ray::LogMonitor",
}
_ALL_TITLES = {**TITLES, **RAY_TITLES}
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
_SHM = Path("/dev/shm")
_WORKER = re.compile(rb'WorkerId="([^"]+)"')


class Looker:
    """Looks at the application that this process started."""

    def __init__(self, url: str) -> None:
        self._urls = url.split(",")
        self._session = Path(worker._global_node.get_session_dir_path())
        self._sockets = Path(worker._global_node.get_sockets_dir_path())
        self._base = private_base()
        self._pids = Path(os.environ["BIREME_HAPROXY_PIDS"])
        self._left_pid_files = LeftPidFiles(self._pids)

    def look(self) -> dict[str, float]:
        """Counts by name: "memory KIND" in MiB, "descriptors KIND" and "threads KIND" of the process of that kind that has most.

        Takes some tenths of a second; blocks. What cannot be seen at this moment is left out.
        """
        return {**_processes(), **self._files(), **_tables(), **_ingresses(), **self._metrics()}

    def _files(self) -> dict[str, float]:
        logs = _files_below(self._session / "logs")
        return {
            "token sockets": sum(1 for _ in self._base.glob("t-*")),
            "entries of the sockets folder": len(os.listdir(self._sockets)),
            "pid files": len(os.listdir(self._pids)),
            "pid files that starts left": self._left_pid_files.look(),
            "files of the run folder": len(_files_below(self._pids.parent)),
            "log files": len(logs),
            "log MiB": sum(map(_size, logs)) / 2**20,
            "other files of the session": len(_files_below(self._session)) - len(logs),
            "shared memory files": len(os.listdir(_SHM)) if _SHM.is_dir() else 0,
        }

    def _metrics(self) -> dict[str, float]:
        """From the first address that answers; nothing where none does."""
        for url in self._urls:
            with contextlib.suppress(httpx.HTTPError):
                text = httpx.get(f"{url}/metrics", timeout=5).raise_for_status().content
                return {
                    "lines of /metrics": text.count(b"\n"),
                    "KiB of /metrics": len(text) / 1024,
                    "workers in /metrics": len(set(_WORKER.findall(text))),
                }
        return {}


def _processes() -> dict[str, float]:
    most: dict[str, float] = {}
    number: Counter[str] = Counter()
    zombies = 0
    for pid in descendants():
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if not title:
                zombies += not state_of(pid)
            kind = next((kind for kind, start in _ALL_TITLES.items() if re.match(start, title)), None)
            number[kind or "other"] += 1
            if kind is None:
                continue
            resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
            found = {
                f"memory {kind}": (resident - shared) * _PAGE_MIB,
                f"descriptors {kind}": len(os.listdir(f"/proc/{pid}/fd")),
                f"threads {kind}": len(os.listdir(f"/proc/{pid}/task")),
            }
            for name, count in found.items():
                most[name] = max(count, most.get(name, 0))
    return {**most, "processes": sum(number.values()), "zombies": zombies}


def _tables() -> dict[str, float]:
    groups = placement_group_table().values()
    return {"actors in the GCS": len(actors()), "placement groups in the GCS": len(groups), "nodes": len(ray.nodes())}


def _ingresses() -> dict[str, float]:
    most: dict[str, float] = {}
    for found in ask_ingresses(_held):
        for name, count in found.items():
            most[f"{name} of an ingress"] = max(count, most.get(f"{name} of an ingress", 0))
    return most


def _held(replica: Any) -> dict[str, int]:
    """Asked inside an ingress."""
    ingress = replica._replica_impl._user_callable_wrapper._callable
    client = None if ingress is None else ingress._client
    streams = [] if client is None else client.streams
    # The question is asked on another thread than that of the ingress's event loop.
    listening = None if client is None else client._streams._listening
    return {
        "asyncio tasks": 0 if listening is None else len(asyncio.all_tasks(listening.get_loop())),
        "avoided engines": 0 if client is None else len(client.choices._avoided_until),
        "chosen engines": 0 if client is None else len(client.choices._chosen),
        "token streams": len(streams),
        "requests": 0 if client is None else len(client._submissions.journal),
    }


def _files_below(folder: Path) -> list[str]:
    return [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]


def _size(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0
