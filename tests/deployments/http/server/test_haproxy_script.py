"""What ``haproxy_on_loopback.sh`` makes of the configuration that Serve wrote, and which HAProxies it knows of."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK
from tests.deployments.http.server.real_haproxy import configured

WITH_LOG = """global
    # Access/event log at `info`.
    log {target} local0 info
    maxconn 400
defaults
    mode http
    log global
frontend http_frontend
    bind 127.0.0.1:8000
    log global
    log /tmp/metrics.sock len 8192 format rfc5424 local1 debug
"""


@pytest.fixture(autouse=True)
def as_serve_has_it(monkeypatch) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_LOG_TARGET", raising=False)


def _start(*arguments: str) -> str:
    """Have the script start a HAProxy that only says what it was called with; that."""
    environment = {**os.environ, "BIREME_HAPROXY": "/bin/echo"}
    command = [str(HAPROXY_ON_LOOPBACK), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _with_log(folder: Path, target: str) -> str:
    """The configuration that HAProxy is started with, where Serve's has its log go to ``target``."""
    return configured(folder, WITH_LOG.format(target=target))


def test_haproxy_gets_the_configuration_with_its_side_doors_closed_its_limits_and_no_splicing_of_requests(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    stats socket /run/a mode 666 level admin\n    maxconn 1000\n"
        "defaults\n    mode http\n    option splice-request\n    option splice-response\n"
        "frontend prometheus\n    bind :9101\n"
        "frontend http_frontend\n    bind *:8000\n"
        "listen stats\n  bind *:8404\n"
    )
    assert _start("-db", "-f", str(config), "-sf", "1 2") == f"-db -f {config} -sf 1 2\n"
    assert config.read_text() == (
        "global\n    stats socket /run/a mode 600 level admin\n    maxconn 1000\n"
        "defaults\n    mode http\n    timeout http-request 10s\n    option forwardfor\n"
        "    option http-ignore-probes\n    option splice-response\n"
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


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_line_for_each_request_goes_to_who_listens(tmp_path, family):
    with socket.socket(family, socket.SOCK_DGRAM) as log:
        log.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", 0))
        target = f"127.0.0.1:{log.getsockname()[1]}"
        assert f"log {target} local0 info" in _with_log(tmp_path, target)
    heard_by_nobody = _with_log(tmp_path, target)
    assert target not in heard_by_nobody
    # What is told elsewhere, and what is not told to this machine.
    assert "log /tmp/metrics.sock len 8192" in heard_by_nobody
    assert "log 10.1.2.3:514 local0 info" in _with_log(tmp_path, "10.1.2.3:514")


def test_who_only_sends_to_that_port_does_not_listen(tmp_path):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        log.bind(("127.0.0.1", 0))
        target = log.getsockname()
        one.connect(target)
        log.close()
        assert "local0" not in _with_log(tmp_path, f"127.0.0.1:{target[1]}")


def test_who_names_a_place_for_it_has_it_there(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_LOG_TARGET", "127.0.0.1:5140")
    assert "log 127.0.0.1:5140 local0 info" in _with_log(tmp_path, "127.0.0.1:5140")
