"""HAProxy's own log goes to who listens, or where it was told to go."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK

CONFIG = """global
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


def _as_started(folder: Path, target: str) -> str:
    """The configuration that HAProxy is started with."""
    file = folder / "haproxy.cfg"
    file.write_text(CONFIG.format(target=target))
    environment = {**os.environ, "BIREME_HAPROXY": str(shutil.which("true"))}
    subprocess.run([str(HAPROXY_ON_LOOPBACK), "-f", str(file)], env=environment, check=True)
    return file.read_text()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_line_for_each_request_goes_to_who_listens(tmp_path, family):
    with socket.socket(family, socket.SOCK_DGRAM) as log:
        log.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", 0))
        target = f"127.0.0.1:{log.getsockname()[1]}"
        assert f"log {target} local0 info" in _as_started(tmp_path, target)
    heard_by_nobody = _as_started(tmp_path, target)
    assert target not in heard_by_nobody
    # What is told elsewhere, and what is not told to this machine.
    assert "log /tmp/metrics.sock len 8192" in heard_by_nobody
    assert "log 10.1.2.3:514 local0 info" in _as_started(tmp_path, "10.1.2.3:514")


def test_who_only_sends_to_that_port_does_not_listen(tmp_path):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        log.bind(("127.0.0.1", 0))
        target = log.getsockname()
        one.connect(target)
        log.close()
        assert "local0" not in _as_started(tmp_path, f"127.0.0.1:{target[1]}")


def test_who_names_a_place_for_it_has_it_there(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_LOG_TARGET", "127.0.0.1:5140")
    assert "log 127.0.0.1:5140 local0 info" in _as_started(tmp_path, "127.0.0.1:5140")
