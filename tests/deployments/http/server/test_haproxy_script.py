"""What ``haproxy_on_loopback.sh`` makes of the configuration that Serve wrote, and which HAProxies it knows of."""

from __future__ import annotations

import os
import subprocess

from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK


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
