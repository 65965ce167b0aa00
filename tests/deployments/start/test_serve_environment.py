"""Which of Serve's switches are set, and that a person's choice stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.start import serve_environment
from deployments.start.ready_line import url_host
from deployments.start.serve_environment import (
    BESIDE_HAPROXY,
    SERVE_ENVIRONMENT,
    WITHOUT_HAPROXY,
    apply_serve_environment,
)


@pytest.mark.parametrize(
    ("packaged", "set_before", "expected"),
    [
        (True, {}, BESIDE_HAPROXY),
        (False, {}, WITHOUT_HAPROXY),
        (True, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, WITHOUT_HAPROXY),
        (True, {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "7"}, BESIDE_HAPROXY | {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "7"}),
    ],
)
def test_a_dead_proxy_is_noticed_sooner_where_no_other_one_takes_its_clients(
    packaged, set_before, expected, tmp_path: Path, monkeypatch
):
    if not packaged:
        monkeypatch.setattr(serve_environment.importlib.util, "find_spec", lambda name: None)
    environment = dict(set_before)
    apply_serve_environment(tmp_path, environment)
    assert {name: environment[name] for name in expected} == expected
    assert set_before.items() <= environment.items()


@pytest.mark.parametrize(
    ("name", "module", "constant"),
    [
        ("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "ray._private.log_monitor", "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD"),
        ("METRICS_RECORD_INTERVAL_S", "ray.dashboard.consts", "METRICS_RECORD_INTERVAL_S"),
    ],
)
def test_processes_of_ray_beside_the_workers_read_what_they_are_told(name, module, constant):
    value = SERVE_ENVIRONMENT[name]
    read = subprocess.run(
        [sys.executable, "-c", f"import {module} as module; print(module.{constant})"],
        env={**os.environ, name: value}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert read.stdout.split() == [value]


def test_streams_name_the_second_door_only_beside_haproxy(monkeypatch):
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert serve_environment.fallback_port() is None
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert serve_environment.fallback_port() in range(1, 2**16)


@pytest.mark.parametrize(
    ("descriptors", "expected"), [(256, 64), (1024, 307), (20_000, 7897), (100_000, 8192), (-1, 8192)]
)
def test_haproxy_has_no_more_connections_than_there_are_descriptors_for(descriptors, expected, monkeypatch):
    monkeypatch.setattr(serve_environment.resource, "getrlimit", lambda kind: (descriptors, descriptors))
    assert serve_environment.max_connections() == expected


@pytest.mark.parametrize(("num_cores", "expected"), [(1, "1"), (2, "1"), (8, "2"), (16, "4"), (128, "4")])
def test_haproxy_has_a_thread_for_some_cores(num_cores, expected, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(serve_environment.os, "sched_getaffinity", lambda pid: set(range(num_cores)))
    environment: dict[str, str] = {}
    apply_serve_environment(tmp_path, environment)
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == expected


def test_ipv6_hosts_have_serves_own_proxy_and_brackets_in_their_url(tmp_path: Path):
    for host, is_used, shown in (
        ("::", "0", "127.0.0.1"),
        ("::1", "0", "[::1]"),
        ("0.0.0.0", "1", "127.0.0.1"),
        ("127.0.0.2", "1", "127.0.0.2"),
    ):
        environment: dict[str, str] = {}
        apply_serve_environment(tmp_path, environment, host)
        assert (environment["RAY_SERVE_ENABLE_HA_PROXY"], url_host(host)) == (is_used, shown)


def test_a_free_port_is_none_that_the_system_gives_to_connections(monkeypatch, tmp_path):
    first, last = map(int, serve_environment._OWN_PORTS.read_text().split())
    ports = [serve_environment.free_port() for _ in range(20)]
    assert all(map(serve_environment.is_free, ports))
    if first > serve_environment._FIRST_PORT:
        assert not any(first <= port <= last for port in ports)
    for text in ("1024 65535", ""):  # all of them are the system's; nobody says
        (tmp_path / "range").write_text(text)
        monkeypatch.setattr(serve_environment, "_OWN_PORTS", tmp_path / "range")
        assert serve_environment.is_free(serve_environment.free_port())
