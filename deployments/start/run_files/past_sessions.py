"""The Ray sessions that this user's servers have had on this machine, and what their logs say."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.errors import BiremeError
from cluster.process.process_age import parent_process, process_age_s
from cluster.process.process_liveness import has_ended

# What a proxy of Ray Serve says when it starts; HAProxy, which is in front then, says it last.
_PORT = re.compile(r"roxy starting on node .*\(HTTP port: (\d+)\)")
_SESSION = re.compile(r"session_(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)_\d+_(\d+)")
_ADDRESS = re.compile(r"Dashboard head http address: (\S+)")
_POLL_S = 0.5
_CHUNK_BYTES = 1 << 20
_MOST_NAMED = 8  # ports: each server that ever ran here had one


def sessions(base: Path) -> list[Path]:
    """Folders of the sessions below ``base``, the newest first."""
    return sorted((path for path in (base / "ray").glob("session_2*") if not path.is_symlink()), reverse=True)


def ray_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where ``ray start`` keeps its sessions and the address of the last one's head, unless ``--temp-dir`` says otherwise."""
    return Path(environment.get("RAY_TMPDIR", environment.get("TMPDIR", "/tmp")), "ray")


def known_sessions(base: Path) -> list[Path]:
    """Both kinds: those that run first, of these and of the others the newest first."""
    both = {session.resolve(): session for session in (*sessions(base), *joined_sessions())}.values()
    return sorted(both, key=lambda session: (is_running(session), session.name), reverse=True)


def joined_sessions() -> list[Path]:
    """Folders of this user's sessions of clusters that ``ray start`` began or joined on this machine, the newest first."""
    found = [path for path in ray_folder().glob("session_2*") if not path.is_symlink()]
    return sorted((path for path in found if _owner(path) == os.getuid()), reverse=True)


def joined_head() -> str | None:
    """host of the head of the cluster that this machine began or joined last with ``ray start``; None without one."""
    return joined_address().rpartition(":")[0] or None


def joined_address() -> str:
    """host:port of that head; empty without one."""
    file = ray_folder() / "ray_current_cluster"
    # Others may write to the folder.
    if _owner(file) != os.getuid():
        return ""
    try:
        return visible(file.read_text(errors="replace").strip())
    except OSError:
        return ""


def is_running(session: Path) -> bool:
    """Whether the process that started the session is there: its id ends the folder's name, behind the time, which tells it from
    a later process of that id."""
    found = _SESSION.fullmatch(session.name)
    if found is None or has_ended(int(found[2])):
        return False
    began_at = time.time() - process_age_s(int(found[2]))
    return began_at <= time.mktime(time.strptime(found[1], "%Y-%m-%d_%H-%M-%S")) + 1.0


def api_port(session: Path) -> int | None:
    """The port that the API of the session's server listens on; None if it never came so far."""
    ports: list[str] = []
    for file in sorted((session / "logs" / "serve").glob("proxy_*.log")):
        try:
            ports += _PORT.findall(file.read_text(errors="replace"))
        except OSError:  # it was removed meanwhile
            continue
    return int(ports[-1]) if ports else None


def server_on(port: int, base: Path) -> int | None:
    """Process to signal of this user's server whose API listens on ``port``; None if no session below ``base`` is of one."""
    for session in sessions(base):
        found = _SESSION.fullmatch(session.name)
        if found is not None and is_running(session) and api_port(session) == port:
            return parent_process(int(found[2]))  # bireme serve is two: the other takes signals
    return None


def on_port(found: list[Path], port: int | None) -> list[Path]:
    """Those of the sessions whose API is or was on ``port``; all if it is None.

    Raises:
        BiremeError: there is none.
    """
    if port is None:
        return found
    ports = {session: api_port(session) for session in found}
    chosen = [session for session in found if ports[session] == port]
    if not chosen:
        newest = list(dict.fromkeys(str(other) for other in ports.values() if other is not None))
        others = ", ".join([*sorted(newest[:_MOST_NAMED]), *(["..."] if len(newest) > _MOST_NAMED else [])]) or "none"
        raise BiremeError(f"--port: no server of yours was on {port} of this machine; there are logs of: {others}")
    return chosen


def others_note(chosen: Path, found: list[Path]) -> str:
    """That there are other servers than ``chosen`` which run, and how one of them is meant; empty if there is none."""
    ports = [api_port(session) for session in found if session != chosen and is_running(session)]
    if not ports:
        return ""
    others = ", ".join(sorted("one that starts" if port is None else str(port) for port in ports))
    port = api_port(chosen)
    this = "starts" if port is None else f"is on port {port}"
    return f"The server that was started last {this}; --port chooses another that runs: {others}"


def log_files(session: Path, engine: str | None = None) -> list[Path]:
    """What the server's own processes wrote: Serve's logs, and what workers said on stderr and stdout; oldest change first.

    Args:
        engine: only files in which this engine is named.
    """
    logs = session / "logs"
    files = [*logs.glob("serve/*.log"), *logs.glob("worker-*.err"), *logs.glob("worker-*.out")]
    # Others may write to the folders that ray start makes.
    files = [file for file in files if _owner(file) == os.getuid()]
    if engine is not None:
        files = [file for file in files if _names(file, engine)]
    return sorted(files, key=lambda file: (_modified(file), file.name))


def dashboard_address(session: Path) -> str | None:
    """host:port of the session's dashboard; None if it never came up."""
    file = session / "logs" / "dashboard.log"
    if _owner(file) != os.getuid():
        return None
    try:
        found = _ADDRESS.findall(file.read_text(errors="replace"))
    except OSError:
        return None
    return found[-1] if found else None


def head_address(session: Path) -> str | None:
    """host:port of Ray's head, which listens on this machine alone; None if it never came up."""
    for file in session.glob("gcs_server_port_*"):
        with contextlib.suppress(OSError, ValueError):
            return f"127.0.0.1:{int(file.read_text())}"
    return None


class FollowedLogs:
    """Lines of files from where one left off."""

    def __init__(self) -> None:
        self._read_up_to: dict[Path, int] = {}
        self._begun: dict[Path, bytes] = {}

    def new_lines(self, files: list[Path]) -> Iterator[tuple[Path, str]]:
        """Whole lines that were not returned before, file by file. A file that became shorter is read from its beginning."""
        for file in files:
            try:
                with open(file, "rb") as opened:
                    place = self._read_up_to.get(file, 0)
                    if os.fstat(opened.fileno()).st_size < place:
                        place = 0
                        self._begun.pop(file, None)
                    opened.seek(place)
                    while chunk := opened.read(_CHUNK_BYTES):
                        self._read_up_to[file] = opened.tell()
                        *lines, self._begun[file] = (self._begun.get(file, b"") + chunk).split(b"\n")
                        for line in lines:
                            yield file, visible(line.decode(errors="replace"))
            except OSError:
                continue  # it was removed meanwhile


def follow(session: Path, engine: str | None, logs: FollowedLogs) -> Iterator[tuple[Path, str]]:
    """New lines as they come, without end."""
    while True:
        yield from logs.new_lines(log_files(session, engine))
        time.sleep(_POLL_S)


def visible(line: str) -> str:
    """``line`` without what a terminal would obey."""
    return "".join(sign if sign.isprintable() or sign == "\t" else "\ufffd" for sign in line.rstrip("\r"))


def _names(file: Path, engine: str) -> bool:
    try:
        with open(file, "rb") as opened:
            before = b""
            while chunk := opened.read(_CHUNK_BYTES):
                if engine.encode() in before + chunk:
                    return True
                before = chunk[-len(engine) :]
    except OSError:
        pass
    return False


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
