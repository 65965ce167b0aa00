"""``bireme doctor``, ``env``, ``logs`` and ``dashboard``: what they say of a machine and of sessions that are over."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.commands import doctor
from deployments.commands.autoscale import _head
from deployments.start.run_files import past_sessions
from deployments.start.run_files.past_sessions import FollowedLogs, visible
from deployments.start.serve_environment import SERVE_ENVIRONMENT, free_port

ENGINE = "engine-0123456789ab"


def run(*arguments: str):
    return CliRunner(env={"COLUMNS": "500"}).invoke(app, list(arguments), prog_name="bireme")


@pytest.fixture
def session(tmp_path, monkeypatch) -> Path:
    base = tmp_path / "base"
    monkeypatch.setattr("deployments.commands.logs.ray_base", lambda: base)
    monkeypatch.setattr("deployments.commands.dashboard.ray_base", lambda: base)
    # No cluster of ray start, and no server that could be asked.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "joined"))
    monkeypatch.setenv("BIREME_URL", "http://127.0.0.1:9")
    logs = base / "ray" / "session_2026-01-01_00-00-00_000000_4194305" / "logs"
    (logs / "serve").mkdir(parents=True)
    (logs / "serve" / "controller_1.log").write_text("controller\n")
    (logs / "worker-a-1.err").write_text(f"event=engine_ready engine={ENGINE}\n\x1b[2Jof the runner\n")
    (logs / "raylet.out").write_text("Ray's own\n")
    return logs.parent


def test_logs_are_those_of_the_servers_own_processes_and_cannot_command_the_terminal(session):
    shown = run("logs").output
    assert "controller\n" in shown
    assert "of the runner\n" in shown
    assert "Ray's own" not in shown
    assert "\x1b[2J" not in shown
    of_engine = run("logs", "--engine", ENGINE).output
    assert "of the runner\n" in of_engine
    assert "controller\n" not in of_engine
    none = run("logs", "--engine", "engine-x")
    assert (none.exit_code, none.stderr.startswith("Error: no log names engine 'engine-x'")) == (1, True)
    assert run("logs", "--back", "1").exit_code == 1


def test_following_an_engine_of_another_node_says_where_it_is(session, monkeypatch):
    status = {"engines": [{"engine_id": "engine-far", "node_ip": "10.0.0.2", "log": "worker-*-7.err"}]}
    monkeypatch.setattr("deployments.commands.logs.Client.status", lambda self: status)
    for arguments in (["--engine", "engine-far", "-f"], ["--engine", "far"]):
        shown = run("logs", *arguments)
        assert (shown.exit_code, "engine-far runs on node 10.0.0.2" in shown.stderr) == (1, True)


def test_the_folder_of_ray_start_is_where_ray_has_it():
    assert past_sessions.ray_folder({}) == Path("/tmp/ray")
    assert past_sessions.ray_folder({"TMPDIR": "/a"}) == Path("/a/ray")
    assert past_sessions.ray_folder({"TMPDIR": "/a", "RAY_TMPDIR": "/b"}) == Path("/b/ray")


def test_the_head_of_a_joined_cluster_is_this_users_and_cannot_command_the_terminal(session, monkeypatch):
    folder = past_sessions.ray_folder()
    folder.mkdir(parents=True)
    (folder / "ray_current_cluster").write_text("\x1b[2J10.0.0.1:6379\n")
    assert past_sessions.joined_head() == "\ufffd[2J10.0.0.1"
    monkeypatch.setattr("deployments.commands.autoscale.ray_base", lambda: session.parents[1])
    (folder / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert _head(None) == "10.0.0.1:6379"
    monkeypatch.setattr(past_sessions.os, "getuid", lambda: 12345)
    assert past_sessions.joined_head() is None


def test_of_several_servers_that_run_it_is_said_which_is_shown(session):
    """Two that run (this process and its parent stand for them), and an older one whose id another process has by now."""
    before, now, later = (
        time.strftime("session_%Y-%m-%d_%H-%M-%S_000000", time.localtime(when))
        for when in (1e9, time.time(), time.time() + 1)
    )
    names = {f"{before}_{os.getpid()}": 8000, f"{now}_{os.getppid()}": 8001, f"{later}_{os.getpid()}": 8002}
    for name, port in names.items():
        logs = session.parent / name / "logs" / "serve"
        logs.mkdir(parents=True)
        line = "INFO proxy 1 -- {} starting on node ab (HTTP port: {}).\n"
        (logs / "proxy_1.log").write_text(line.format("Proxy", 8500) + line.format("HAProxy", port))
    (logs / "replica_1.log").write_text("of the last\n")
    (session.parent / f"{now}_{os.getppid()}" / "logs/worker-b-1.err").write_text(f"{ENGINE} of the second\n")
    shown = run("logs")
    assert "of the last\n" in shown.stdout
    assert shown.stderr == "The server that was started last is on port 8002; --port chooses another that runs: 8001\n"
    for arguments in (["--port", "8001"], ["--engine", ENGINE]):
        other = run("logs", *arguments)
        assert ("of the second\n" in other.stdout, "of the last" in other.stdout, other.stderr) == (True, False, "")
    assert "there are logs of: 8000, 8001, 8002" in run("logs", "--port", "9").stderr


def test_followed_logs_give_each_whole_line_once(tmp_path):
    file, reader = tmp_path / "log", FollowedLogs()
    seen = []
    for text in ("one\ntw", "o\n", "", "three"):
        with open(file, "a") as opened:
            opened.write(text)
        seen.append([line for _, line in reader.new_lines([file, tmp_path / "none"])])
    assert seen == [["one"], ["two"], [], []]
    file.write_text("new\n")
    assert [line for _, line in reader.new_lines([file])] == ["new"]
    assert visible("a\tb\x1b]0;c\x07\r") == "a\tb\ufffd]0;c\ufffd"


def test_the_dashboard_is_one_that_answers(session):
    log = session / "logs" / "dashboard.log"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        log.write_text(f"INFO -- Dashboard head http address: {address}\n")
        assert run("dashboard").output.startswith(f"http://{address}\n")
    assert run("dashboard").exit_code == 1


def test_on_a_node_of_a_cluster_its_own_logs_are_shown_and_the_heads_dashboard_is_named(session, tmp_path):
    joined = tmp_path / "joined" / "ray"
    (joined / "session_2026-02-01_00-00-00_000000_1" / "logs").mkdir(parents=True)
    (joined / "session_2026-02-01_00-00-00_000000_1/logs/worker-b-1.err").write_text("engine-elsewhere of this node\n")
    (joined / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert "of this node\n" in run("logs", "--engine", "engine-elsewhere").stdout
    # The newest of both kinds; neither runs.
    assert "of this node\n" in run("logs").stdout
    assert "of the runner\n" in run("logs", "--back", "1").stdout
    said = run("dashboard").stderr
    assert "head at 10.0.0.1: bireme dashboard shows it there" in said
    shutil.rmtree(session.parent)
    assert "of this node\n" in run("logs").stdout


def test_what_others_have_put_among_the_logs_is_not_read(session, monkeypatch):
    monkeypatch.setattr(past_sessions.os, "getuid", lambda: 12345)
    assert "controller" not in run("logs").output


def test_doctor_names_every_fault_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_PADDLE", "print('3.0\\ncpu')")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
        ill = run("doctor", "--port", port)
    assert ill.exit_code == 1
    faults = [line for line in ill.output.splitlines() if line.startswith("FAULT")]
    assert f"FAULT port: port {port} is taken on this machine; choose another with --port" in faults
    assert any(line.startswith("FAULT temporary files: TMPDIR=") for line in faults)
    monkeypatch.setattr(doctor, "_PADDLE", "raise SystemExit('no kernel image for this device')")
    assert any(
        "its kernels do not run here (no kernel image for this device)" in line
        for line in run("doctor").output.splitlines()
    )


def test_doctor_looks_for_room_where_ray_and_models_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_PADDLE", "print('3.0\\ncpu')")
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path / "cache"))
    usage = SimpleNamespace(free=4_000_000, total=1 << 40)
    with monkeypatch.context() as full:
        full.setattr(doctor.shutil, "disk_usage", lambda path: usage)
        faults = [line for line in run("doctor").output.splitlines() if line.startswith("FAULT")]
    assert any(line.startswith("FAULT Ray's folder: ") and "4.0 MB are free" in line for line in faults)
    assert any(line.startswith("FAULT cache: ") and "4.0 MB are free" in line for line in faults)
    with monkeypatch.context() as readable:
        readable.setattr(doctor.os, "access", lambda path, mode: False)
        assert f"{tmp_path}/cache cannot be written; make room (bireme rm), or set BIREME_CACHE" in run("doctor").output


@pytest.mark.parametrize(
    ("variables", "remedy"),
    [
        ({}, None),
        ({"http_proxy": "http://127.0.0.1:9"}, "no_proxy=127.0.0.1,localhost"),
        ({"ALL_PROXY": "http://127.0.0.1:9", "NO_PROXY": "localhost"}, "no_proxy=localhost,127.0.0.1"),
        ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}, None),
        ({"https_proxy": "http://127.0.0.1:9"}, None),
    ],
)
def test_doctor_warns_of_a_proxy_that_others_ask_for_this_machine(monkeypatch, variables, remedy):
    for kind in ("http", "https", "all", "no"):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "_PADDLE", "print('3.0\\ncpu')")
    shown = run("doctor", "--host", "0.0.0.0", "--port", str(free_port()))
    (line,) = [line for line in shown.output.splitlines() if " proxies: " in line]
    assert line.split()[0] == ("ok" if remedy is None else "warn")
    assert remedy is None or line.endswith(f": export {remedy}")


def test_env_is_what_serve_sets_as_a_shell_reads_it(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("RAY_", "BIREME_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "7")
    printed = run("env").output
    assert all(line.startswith("export ") for line in printed.splitlines())
    script = f"{printed}\nenv -0"
    kept = {"PATH": os.environ["PATH"], "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "7"}
    found = subprocess.run(["sh", "-c", script], env=kept, capture_output=True, text=True, check=True).stdout
    got = dict(one.split("=", 1) for one in found.rstrip("\0").split("\0"))
    assert got.items() >= SERVE_ENVIRONMENT.items()
    assert got["RAY_AUTH_MODE"] == "token" and got["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "7"
    folder = Path(got["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"])
    assert (folder / "pids").is_dir() and stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["complete", "--max-tokens", "abc", "x"], '--max-tokens: must be an integer, got "abc"'),
        (["complete", "--max-tokens", "0", "x"], "--max-tokens: must be at least 1, got"),
        (["chat", "--temperature", "9", "x"], "--temperature: must be at most 2, got"),
        (["bench", "--backend", "other"], '--backend: must be "openai", "vllm" or "openai-chat", got "other"'),
        (["bench", "--rate", "2"], "unknown option --rate; did you mean --request-rate? (bireme bench -h)"),
        (["bench", "--concurrency", "2"], "unknown option --concurrency; did you mean --max-concurrency?"),
        (["status", "--json=1"], "--json: takes no value"),
        (["bench", "--json"], "--json: needs a value"),
        (["status", "x"], "x: one argument too many"),
        (["statsu"], "unknown command statsu; did you mean status? (bireme -h)"),
        (["config", "chek"], "unknown command chek; did you mean check? (bireme config -h)"),
        (["trace"], "ID is missing (bireme trace -h)"),
        (["simulate"], "FILE is missing"),
        (["--verison"], "unknown option --verison; did you mean --version? (bireme -h)"),
        (["run-batch", "/nowhere/x.jsonl"], "does not exist"),
    ],
)
def test_a_wrong_option_is_told_in_the_words_of_settings(arguments, said):
    shown = run(*arguments)
    assert shown.exit_code == 2
    assert shown.output.startswith("Error: ")
    assert said in " ".join(shown.output.split())
    assert "Input should be" not in shown.output
