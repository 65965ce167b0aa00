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
from cluster.errors import BiremeError
from deployments.commands.serving.start_watcher import StartWatcher
from deployments.start.run_files.private_folder import private_base
from deployments.start.serve_config import BUILDER, configured_model, configured_models, serve_config, without_keys
from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK, free_port
from tests.deployments.conftest import App, wait_for
from tests.deployments.http.server.test_slow_connections import half_open, is_closed
from tests.deployments.strangers import files_with, opened_by_a_stranger, shown_by_ps
from tests.deployments.supervision.signals import leftovers
from tests.engines import TINY_CONFIG
from tests.test_docs import blocks_marked, shown_block

ROOT = Path(__file__).resolve().parents[2]
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


def test_haproxy_gets_the_configuration_with_its_side_doors_closed_its_limits_and_no_splicing_of_requests(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    stats socket /run/a mode 666 level admin\n    maxconn 1000\n"
        "defaults\n    mode http\n    option splice-request\n    option splice-response\n"
        "frontend prometheus\n    bind :9101\n"
        "frontend http_frontend\n    bind *:8000\n"
        "listen stats\n  bind *:8404\n"
    )
    result = subprocess.run(
        [str(HAPROXY_ON_LOOPBACK), "-db", "-f", str(config), "-sf", "1 2"],
        env={**os.environ, "BIREME_HAPROXY": "/bin/echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"-db -f {config} -sf 1 2\n"
    assert config.read_text() == (
        "global\n    stats socket /run/a mode 600 level admin\n    maxconn 1000\n"
        "defaults\n    mode http\n    timeout http-request 10s\n    option forwardfor\n    option splice-response\n"
        "frontend prometheus\n    bind 127.0.0.1:9101\n"
        "frontend http_frontend\n    bind *:8000\n"
        "    stick-table type ipv6 size 100k expire 10m store conn_cur\n"
        "    tcp-request connection track-sc0 src\n"
        "    tcp-request connection reject if { sc0_conn_cur gt 750 }\n"
        "    http-request del-header X-Forwarded-For if { src 127.0.0.0/8 ::1 }\n"
        "    http-response del-header X-Bireme-Room\n"
        "listen stats\n  bind 127.0.0.1:8404\n"
    )


def test_names_of_haproxies_that_have_ended_go_with_the_next_one(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text("global\n")
    pids = tmp_path / "pids"
    pids.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (pids / str(pid)).touch()
    environment = {**os.environ, "BIREME_HAPROXY": "/bin/echo", "BIREME_HAPROXY_PIDS": str(pids)}
    for _ in range(3):
        haproxy = subprocess.Popen(
            [str(HAPROXY_ON_LOOPBACK), "-f", str(config)], env=environment, stdout=subprocess.DEVNULL
        )
        assert haproxy.wait() == 0
        assert {int(file.name) for file in pids.iterdir()} == {os.getpid(), haproxy.pid}


def test_settings_and_files_are_served_on_loopback_unless_they_say_otherwise(tmp_path):
    config = serve_config(["max_num_seqs=8", "model=x=y.gguf"])
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert (configured_model(config).max_num_seqs, configured_model(config).model) == (8, "x=y.gguf")
    file = tmp_path / "config.yaml"
    applications = [{"import_path": "deployments.llm:build_openai_app", "args": {"max_num_seqs": 3}}]
    file.write_text(yaml.safe_dump({"applications": applications}))
    assert serve_config([str(file)])["http_options"] == {"host": "127.0.0.1", "port": 8000}
    file.write_text(
        yaml.safe_dump({"applications": applications, "http_options": {"host": "0.0.0.0", "root_path": "/a"}})
    )
    assert serve_config([str(file)])["http_options"] == {"host": "0.0.0.0", "port": 8000, "root_path": "/a"}
    again = serve_config([str(file)], host="127.0.0.2", port=9)
    assert again["http_options"] == {"host": "127.0.0.2", "port": 9, "root_path": "/a"}
    assert configured_model(again).max_num_seqs == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("applications: [", "not YAML"),
        ("just a sentence", "no list named applications"),
        ("applications: []", "no list named applications"),
        ("applications: [{}]\nhttp_options: {port: 99999}", "port: got 99999, allowed: 1 to 65535"),
        ("applications: [{}]\nhttp_options: 8000", "http_options: got 8000"),
    ],
)
def test_a_file_that_is_no_serve_config_is_refused(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(BiremeError, match=message):
        serve_config([str(file)])


def run_serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bireme", "serve", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_prevents_serving_is_one_line(tmp_path):
    no_compiler = run_serve(PATH="/nonexistent", BIREME_CACHE=str(tmp_path))
    assert (no_compiler.returncode, no_compiler.stderr.count("\n")) == (1, 1)
    assert "no C++ compiler found: install g++" in no_compiler.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_serve("--port", str(port), "--address", "local")
    assert (refused.returncode, refused.stderr) == (
        1,
        f"Error: port {port} is taken on this machine; choose another with --port\n",
    )


@pytest.mark.parametrize("keys", [["secret"], '["secret"]'])
@pytest.mark.parametrize("builder", [BUILDER, BUILDER.replace(":", ".")])
def test_keys_of_a_file_reach_serve_as_the_name_of_another_that_only_this_user_may_read(tmp_path, keys, builder):
    ours = {"import_path": builder, "args": {"api_keys": keys, "max_num_seqs": 2}}
    others = {"import_path": "theirs:app", "args": {"api_keys": "what they take for it"}}
    open_one = {"import_path": BUILDER}
    config = without_keys({"applications": [open_one, ours, others]}, tmp_path)
    file = tmp_path / "api-keys-1"
    arguments = {"api_keys_file": str(file), "max_num_seqs": 2}
    assert config == {"applications": [open_one, {"import_path": builder, "args": arguments}, others]}
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("secret\n", 0o600)


def test_keys_that_others_would_see_are_refused_by_name_with_what_to_do(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [{"import_path": BUILDER, "args": {"api_keys": ["secret"]}}]}))
    for refused in (run_serve('api_keys=["secret"]'), run_serve(str(file), "--address", "auto")):
        assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (1, 1, "")
        assert refused.stderr.startswith("Error: api_keys: ")
        assert "api_keys_file" in refused.stderr
        assert "BIREME_API_KEY" in refused.stderr
        assert "secret" not in refused.stderr
    file.write_text('applications:\n- args: {api_keys: ["secret"}\n')
    with pytest.raises(BiremeError, match=r"is not YAML: .* in line 2, column 29") as caught:
        serve_config([str(file)])
    assert "secret" not in caught.value.message


def test_a_file_of_keys_that_others_may_read_prevents_serving_in_one_line(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o644)
    refused = run_serve(f"api_keys_file={keys}", "--address", "local", "--port", str(free_port()))
    assert (refused.returncode, refused.stderr) == (
        1,
        f"Error: api_keys_file: {keys} is open to other users (mode 0644): chmod 600\n",
    )


def test_keys_of_every_application_are_looked_at_before_a_start(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o644)
    names = {"a": {}, "b": {"api_keys_file": str(keys)}}
    applications = [
        {"name": name, "route_prefix": f"/{name}", "import_path": BUILDER, "args": args} for name, args in names.items()
    ]
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": applications}))
    refused = run_serve(str(file), "--address", "local", "--port", str(free_port()))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"{keys} is open to other users" in refused.stderr


def test_the_address_shown_is_that_of_the_first_application_of_ours():
    ours = {"import_path": BUILDER, "route_prefix": "/ours", "args": {}}
    config = {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [{"import_path": "theirs:app", "route_prefix": "/theirs"}, ours],
    }
    watcher = StartWatcher.__new__(StartWatcher)
    watcher._config, (watcher._application, watcher._model) = config, configured_models(config)[0]
    assert watcher._url == "http://127.0.0.1:8000/ours"


def test_another_users_folder_in_the_place_of_ours_prevents_serving_in_one_line(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        taken = Path(parent, private_base().name)
        taken.mkdir()
        taken.chmod(0o777)
        refused = run_serve("--address", "local", "--port", str(free_port()), RAY_TMPDIR=parent)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {taken} is open to other users (mode 0777); ")
    assert refused.stderr.count("\n") == 1
