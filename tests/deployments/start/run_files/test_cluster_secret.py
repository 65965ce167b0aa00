"""The secret of an application: one for all its ingresses, from Ray's store, and never waited for without end."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time

from deployments.start.run_files.cluster_secret import cluster_secret
from tests.deployments.conftest import App


def test_all_who_ask_get_one_secret_an_application_and_it_stays(app: App):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cluster_secret("all at once"), range(8)))
    assert len(set(found)) == 1 and len(found[0]) == 32
    assert cluster_secret("all at once") == found[0] != cluster_secret("another")


# A process of its own: Ray ends one whose store is away for a minute.
_SILENT_STORE = """
import socket, time
from types import SimpleNamespace
import ray
from deployments.start.run_files.cluster_secret import cluster_secret

with socket.create_server(("127.0.0.1", 0)) as store:  # accepts and says nothing
    address = "127.0.0.1:%d" % store.getsockname()[1]
    ray.get_runtime_context = lambda: SimpleNamespace(gcs_address=address)
    began = time.monotonic()
    secrets = {cluster_secret("default", patience_s=0.5) for _ in range(2)}
    print(len(secrets), {len(secret) for secret in secrets}, time.monotonic() - began < 8, flush=True)
import os
os._exit(0)
"""


def test_a_store_that_does_not_answer_costs_cache_hits_and_no_start():
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", _SILENT_STORE], capture_output=True, text=True, timeout=120)
    assert run.stdout.split("\n")[0] == "2 {32} True", (run.stdout, run.stderr[-2000:], time.monotonic() - began)
    assert sum("WARNING" in line and "did not give the secret" in line for line in run.stderr.splitlines()) == 2
