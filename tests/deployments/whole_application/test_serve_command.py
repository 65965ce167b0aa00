"""``bireme serve`` as a person starts it: where it listens, that it runs beside another one, and what it leaves behind."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner
from ray.serve.scripts import cli as serve_cli

from cluster.config import DEFAULT_MODEL
from deployments.start.run_files.private_folder import private_base
from deployments.start.serve_config import BUILDER
from deployments.start.serve_environment import free_port
from tests.deployments.conftest import App, wait_for
from tests.deployments.http.server.test_slow_connections import half_open, is_closed
from tests.deployments.supervision.signals import leftovers
from tests.deployments.whole_application.strangers import files_with, opened_by_a_stranger, shown_by_ps
from tests.engines import TINY_CONFIG
from tests.test_docs import blocks_marked, shown_block

ROOT = Path(__file__).resolve().parents[3]
# In two parts, so that no compiled copy of this file has them.
KEY = "-".join(("key", "of", "arguments", "1f3870be"))
KEY_OF_VARIABLE = "-".join(("key", "of", "variable", "274f6ac1"))


def process_tree(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found


def listeners(pids: list[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which one of ``pids`` listens."""
    inodes = set()
    for pid in pids:
        try:
            inodes |= {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
        except OSError:
            continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            local, state, inode = (row.split()[i] for i in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in inodes:
                address, port = local.split(":")
                words = struct.unpack(f"<{len(address) // 8}I", bytes.fromhex(address))
                packed = struct.pack(f">{len(words)}I", *words)
                ip = ipaddress.ip_address(packed)
                mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
                found.add((str(mapped or ip), int(port, 16)))
    return found


@contextmanager
def served(tmp_path: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    log = tmp_path / "serve.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bireme", "serve", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(url: str, process: subprocess.Popen, log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def config_file(tmp_path: Path) -> Path:
    """Two applications: one with keys in its arguments, and one that has those of the variable, and spares."""
    small = {"max_num_seqs": 2, "num_kv_blocks": 64, "runner_num_cpus": 0.1, "load_format": "dummy", "num_threads": 1}
    tiny = {**small, "model": str(tmp_path), "tokenizer": DEFAULT_MODEL, "model_id": "tiny"}
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, "vocab_size": 49152}))
    applications = [
        {"name": name, "route_prefix": prefix, "import_path": BUILDER, "args": {**tiny, **more}}
        for name, prefix, more in (("default", "/", {"api_keys": [KEY]}), ("second", "/second", {"warm_spares": 1}))
    ]
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"proxy_location": "HeadOnly", "applications": applications}))
    return file


def check_that_no_key_is_shown(pids: list[int], folders: list[Path], log: Path) -> None:
    """Neither in a file that Ray writes, nor on a command line, the terminal, or by Ray Serve, to whoever may ask it."""
    secrets = [KEY, KEY_OF_VARIABLE]
    assert not [line for line in shown_by_ps(pids) if KEY in line or KEY_OF_VARIABLE in line]
    assert [path for path in files_with(secrets, folders) if not path.endswith("/api-keys-0")] == []
    shown = [log.read_text(errors="replace")]
    for command in ("status", "config"):
        asked = CliRunner().invoke(serve_cli, [command, "--address", dashboard(log)], catch_exceptions=False)
        assert asked.exit_code == 0
        shown.append(asked.output)
    token = (Path.home() / ".ray" / "auth_token").read_text()
    details = httpx.get(
        f"{dashboard(log)}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}, timeout=60
    )
    shown.append(details.text)
    assert all("api-keys-0" in text for text in shown[-2:]), "the name of the file is what Serve has"
    assert not [text for text in shown if KEY in text or KEY_OF_VARIABLE in text]


def check_that_switches_arrived(pids: list[int], folder: Path) -> None:
    """What is set for Ray and Serve is what their processes have, and makes HAProxy's configuration."""
    (settings,) = folder.rglob("haproxy.cfg")
    assert set(re.findall(r"^\s*timeout client\s+(\S+)", settings.read_text(), re.MULTILINE)) == {"120s"}
    assert re.search(r"^\s*server \S*OpenAiIngress\S* unix@", settings.read_text(), re.MULTILINE)
    told = []
    for pid in pids:
        with suppress(OSError):
            if b"/gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                told.append(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    assert [b"RAY_task_events_report_interval_ms=0" in environment for environment in told] == [True]


def check_that_files_are_this_users_alone(folders: list[Path]) -> None:
    """Whatever modes Ray gives what it makes, nobody else comes near it."""
    assert [folder.stat().st_mode & 0o077 for folder in folders] == [0] * len(folders)
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
        assert sum(path.is_socket() for path in paths) >= 3, "plasma, raylet, tokens, HAProxy"
        assert opened_by_a_stranger(paths) == ""


@pytest.fixture
def temporary_folder() -> Iterator[Path]:
    """On a short path, and open as /tmp is."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_serve_is_this_users_alone_and_leaves_nothing_but_logs(app: App, tmp_path, temporary_folder):
    """Beside another Ray and its application (``app``), as a person would while tests run."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "serve.log"
    variables = {
        "BIREME_API_KEY": KEY_OF_VARIABLE,
        "BIREME_HEADER_TIMEOUT_S": "2",
        "TMPDIR": str(temporary_folder),
    }
    with served(tmp_path, str(config_file(tmp_path)), "--port", str(port), **variables) as process:
        wait_for(
            lambda: answers(url, process, log) and answers(f"{url}/second", process, log), 90, "no application is ready"
        )
        wait_for(lambda: "\ncurl http" in log.read_text(), 30, "no command to copy")
        check_that_the_start_is_quiet(log.read_text(), url)
        for path, key in (("", KEY), ("/second", KEY_OF_VARIABLE)):
            for offered, status in ((key, 200), (None, 401), ("other", 401)):
                headers = {"Authorization": f"Bearer {offered}"} if offered else {}
                headers["X-Request-ID"] = f"find-{status}"
                body = {"prompt": "One, two,", "max_tokens": 4, "ignore_eos": True}
                answer = httpx.post(f"{url}{path}/v1/completions", json=body, headers=headers, timeout=60)
                assert answer.status_code == status
        headers, body = {"Authorization": f"Bearer {KEY}"}, {"prompt": "x", "max_tokens": 1, "stream": True}
        stream = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
        for one in (port, int(stream.headers["bireme-fallback-port"])):
            assert is_whole_without_chunks(http_1_0_stream(one)), "HAProxy, and Serve's own proxy beside it"
        # HAProxy hands requests to the ingress itself.
        forged = {**headers, "X-Request-ID": "x -- event=y request=forged"}
        answer = httpx.get(f"{url}/v1/models", headers=forged, timeout=60)
        assert answer.headers["x-request-id"] == "x%20--%20event%3Dy%20request%3Dforged"
        spares = wait_for(lambda: ready_spares(f"{url}/second"), 60, "no spares came")
        pids = process_tree(process.pid)
        assert spares <= {*pids}
        found = listeners(pids)
        assert ("127.0.0.1", port) in found
        assert [socket for socket in found if not ipaddress.ip_address(socket[0]).is_loopback] == []
        check_that_unfinished_headers_end([door for address, door in found if is_http(door)])
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if os.path.exists(f"/proc/{pid}")]
        (haproxy,) = {word for command in commands for word in command.split(b"\0") if word.endswith(b"/haproxy.cfg")}
        folder = Path(haproxy.decode()).parents[1]
        (admin,) = folder.rglob("admin.sock")
        assert admin.stat().st_mode & 0o077 == 0
        base = private_base(str(temporary_folder))
        (session,) = (base / "ray").glob("session_2*")
        check_that_switches_arrived(pids, folder)
        wait_for(lambda: log.read_text().count(" x_request_id=find-200 ") == 2, 30, "no lines of the requests")
        check_that_a_request_and_a_runner_are_found_in_logs(session, log.read_text())
        check_that_actors_are_recognised(dashboard(log))
        check_that_no_key_is_shown(pids, [base, folder], log)
        check_that_files_are_this_users_alone([base, folder])
        assert answers(url, process, log)
        deploy_as_the_page_does(tmp_path, log)
        body = {"prompt": "One, two,", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as begun:
            lines = begun.iter_lines()
            assert next(lines).startswith("data: {")
            printed = len(log.read_bytes())
            os.killpg(process.pid, signal.SIGINT)
            assert [line for line in lines if line][-1] == "data: [DONE]", "answers under way end"
        process.wait(60)
    assert process.returncode == 0
    assert log.read_bytes()[printed:].decode() == (
        "bireme: SIGINT: stopping, for 8 s at most; a second one ends at once\n"
    )
    assert not folder.exists()
    assert not any(is_running(pid) for pid in pids)
    assert leftovers(base.parent) == []
    assert files_with([KEY, KEY_OF_VARIABLE], [base]) == []
    assert sorted(path.name for path in base.iterdir()) == ["logs", "ray"]
    assert list(session.glob("logs/serve/*")), "what happened can be read afterwards"


def check_that_the_start_is_quiet(printed: str, url: str) -> None:
    """Nothing but stages with their times, a block, and a command alone in its line."""
    stages, block, command = printed.strip("\n").split("\n\n")
    assert [line for line in stages.splitlines() if not re.fullmatch(r"  [a-zA-Z ,:-]+ [\d.]+ s", line)] == []
    assert command.startswith(f"curl {url}/v1/chat/completions -H ")
    assert "\n" not in command
    names = re.findall(r"^│ (\w+)", block, re.MULTILINE)
    for page in ("README.md", "docs/terminal.md"):
        assert re.findall(r"^│ (\w+)", shown_block(page, __file__), re.MULTILINE) == names, page
    *_, of_page = shown_block("docs/terminal.md", __file__).strip().split(" -d ")
    assert of_page == command.rpartition(" -d ")[2].replace('"tiny"', f'"{DEFAULT_MODEL}"')
    for row in (
        f"URL        {url}/v1, with an API key",
        "model      tiny",
        "device     cpu, float32",
        "streams at once",
    ):
        assert f" {row} " in block


def check_that_a_request_and_a_runner_are_found_in_logs(session: Path, printed: str) -> None:
    """At the terminal, in the ingress's log by the id of its client, and from the replica's log to the runner's."""
    (line, _) = [line for line in printed.splitlines() if " x_request_id=find-200 " in line]
    found = re.fullmatch(
        r"id=cmpl-\w+ x_request_id=\S+ model=tiny queue_ms=[\d.]+ first_token_ms=[\d.]+ prompt_tokens=\d+ tokens=4 "
        r"tokens_per_s=[\d.]+ finish=length engine=(engine-\w+) attempts=1",
        line,
    )
    assert found, line
    ingresses = "".join(file.read_text() for file in session.glob("logs/serve/*OpenAiIngress*.log"))
    assert f" find-200 -- event=request {line}" in ingresses
    replicas = "".join(file.read_text() for file in session.glob("logs/serve/*LLMServer*.log"))
    (runner_log,) = re.findall(rf"event=runner_started engine={found[1]} log=(\S+)", replicas)
    assert f"engine={found[1]}" in Path(runner_log).read_text()


def check_that_actors_are_recognised(url: str) -> None:
    """In Ray's dashboard: each actor says what it is, or is one of Serve's, which has that in the name of its class."""
    headers = {"Authorization": f"Bearer {(Path.home() / '.ray' / 'auth_token').read_text().strip()}"}
    listed = httpx.get(f"{url}/api/v0/actors?detail=1", headers=headers, timeout=60).json()["data"]["result"]["result"]
    shown = {actor["repr_name"] or actor["class_name"] for actor in listed if actor["state"] == "ALIVE"}
    assert "runner tiny cpu" in shown
    (spares,) = [name for name in shown if re.fullmatch("spares tiny [0-9a-f]{8}", name)]
    others = {name.partition(":")[0] for name in shown - {"runner tiny cpu", spares}}
    assert others == {"ServeController", "ServeReplica", "HAProxyManager", "ProxyActor"}


def dashboard(log: Path) -> str:
    """URL of the dashboard, as the terminal has it."""
    (url,) = re.findall(r"dashboard +(http://127[\d.]+:\d+)", log.read_text())
    return url


def deploy_as_the_page_does(folder: Path, log: Path) -> None:
    """In place of what the server has, with an option of Serve's that needs no new replica: tests/chaos looks at those."""
    (block,) = blocks_marked("deployed")
    headers = {"Authorization": f"Bearer {(Path.home() / '.ray' / 'auth_token').read_text().strip()}"}

    def applications() -> dict[str, Any]:
        asked = httpx.get(f"{dashboard(log)}/api/serve/applications/", headers=headers, timeout=60)
        return asked.json()["applications"]

    found = {name: application["deployed_app_config"] for name, application in applications().items()}
    found["default"]["deployments"] = [{"name": "LLMServer", "health_check_period_s": 7.0}]
    (folder / "my.yaml").write_text(yaml.safe_dump({"applications": list(found.values())}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["bash", "-euc", block.replace(".venv/bin/", "")],
        cwd=folder,
        env={**kept, "PATH": programs, "RAY_DASHBOARD_ADDRESS": dashboard(log)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"^  (\w+):$", ran.stdout.partition("\napplications:")[2], re.MULTILINE) == ["default", "second"]

    def is_deployed() -> bool:
        now = applications()["default"]
        return (now["status"], now["deployments"]["LLMServer"]["deployment_config"]["health_check_period_s"]) == (
            "RUNNING",
            7.0,
        )

    wait_for(is_deployed, 60, "the file was not deployed")


def http_1_0_stream(port: int) -> bytes:
    """A stream as a client of HTTP/1.0 gets it, up to the end of the connection."""
    body = b'{"prompt": "One, two,", "max_tokens": 4, "stream": true}'
    head = (
        f"POST /v1/completions HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        with connection.makefile("rb") as received:
            return received.read()


def is_whole_without_chunks(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    is_whole = body.startswith(b"data: {") and body.endswith(b"}\n\ndata: [DONE]\n\n")
    return is_whole and b"transfer-encoding" not in head.lower()


def is_http(port: int) -> bool:
    """Whether the first application is there and asks for a key: at HAProxy's port, that of Serve's own proxy, and its ingress's.
    Ray's dashboard asks for a token of its own."""
    try:
        return "invalid_api_key" in httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).text
    except httpx.HTTPError:
        return False


def check_that_unfinished_headers_end(ports: list[int]) -> None:
    """On every port; and requests go on meanwhile."""
    assert len(ports) == 3
    opened = [connection for port in ports for connection in half_open(port, 20)]
    assert all(map(is_http, ports))
    begun = time.monotonic()
    assert all(map(is_closed, opened))
    assert time.monotonic() - begun < 10


def ready_spares(url: str) -> set[int]:
    """Process ids, once there is one of each kind."""
    status = httpx.get(f"{url}/v1/status", headers={"Authorization": f"Bearer {KEY_OF_VARIABLE}"}, timeout=60).json()
    kinds = [keeper.get(kind, {}) for keeper in status["spares"] for kind in ("replica", "runner")]
    pids = {pid for kind in kinds for pid in kind.get("pids", []) if kind["ready"] == 1}
    return pids if len(pids) == 2 else set()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
