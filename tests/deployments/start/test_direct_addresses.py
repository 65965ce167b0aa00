"""gRPC and the proxies of the environment: addresses are reached directly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.start.direct_addresses import keep_addresses_direct
from deployments.start.serve_environment import apply_serve_environment

ROOT = Path(__file__).resolve().parents[3]

_CALL = """
import concurrent.futures, socket, sys, grpc
if sys.argv[1] == "direct":
    from deployments.start.direct_addresses import keep_addresses_direct
    keep_addresses_direct()
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
for host in ("127.0.0.1", "localhost"):
    try:
        grpc.channel_ready_future(grpc.insecure_channel(f"{host}:{port}")).result(timeout=float(sys.argv[2]))
        print("reached")
    except grpc.FutureTimeoutError:
        print("not reached")
"""


@pytest.mark.parametrize(
    ("how", "wait_s", "expected"), [("direct", "10", "reached"), ("as it is", "0.5", "not reached")]
)
def test_a_proxy_that_the_environment_names_is_not_asked_for_addresses(how, wait_s, expected):
    ran = subprocess.run(
        [sys.executable, "-c", _CALL, how, wait_s],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split("\n")[:-1] == [expected] * 2


def test_what_a_person_exempted_stays_exempted(tmp_path: Path):
    environment = {"no_proxy": "example.org, 10.0.0.0/8"}
    keep_addresses_direct(environment)
    keep_addresses_direct(environment)
    assert environment["no_grpc_proxy"] == "example.org,10.0.0.0/8,0.0.0.0/0,::/0,localhost"
    served: dict[str, str] = {}
    apply_serve_environment(tmp_path, served)
    assert served["no_grpc_proxy"] == "0.0.0.0/0,::/0,localhost"
