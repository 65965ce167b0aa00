"""Three ingresses behind the proxy of ``bireme serve``: a few clients have one of them to themselves, and never learn why."""

from __future__ import annotations

import csv
import io
import os
import socket
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.serving.served_app import ServedApp, settings_config
from tests.waiting import wait_for

NUM_CLIENTS, NUM_REQUESTS = 4, 40
SETTINGS = {
    "device": "simulated",
    "simulated_step_s": 0.005,
    "max_num_seqs": 16,
    "max_model_len": 512,
    "runner_num_cpus": 0.05,
    "deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.01}},
    "ingress_config": {"num_replicas": 3, "ray_actor_options": {"num_cpus": 0.01}},
}


def requests_so_far(folder: Path) -> Counter[str]:
    """By ingress, as HAProxy counts them; of those that its checks find well."""
    (admin,) = folder.glob("*/admin.sock")  # of the only node
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(5)
        asking.connect(str(admin))
        asking.sendall(b"show stat\n")
        text = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
    rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    ingresses = (row for row in rows if "OpenAiIngress" in row["svname"] and row["status"] == "UP")
    return Counter({row["svname"]: int(row["stot"]) for row in ingresses})


def complete(url: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "Name three rivers.", "max_tokens": 10}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30)


@pytest.mark.slow
def test_a_few_clients_are_served_by_one_ingress_alone(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)  # of other tests' cluster, which has no HAProxy
    with tempfile.TemporaryDirectory(prefix="bireme-") as name:  # a short path
        folder = Path(name)
        environment = {"RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock")}
        app = ServedApp(settings_config(SETTINGS), str(tmp_path / "serve.log"), environment=environment)
        try:
            wait_for(lambda: len(requests_so_far(folder)) == 3, 60, "not all ingresses are reached")
            # Serve may still change something else of the configuration; then HAProxy knows nobody's room for one answer.
            time.sleep(2)
            complete(app.url, app.model)
            before = requests_so_far(folder)
            with ThreadPoolExecutor(NUM_CLIENTS) as pool:
                answers = list(pool.map(lambda _: complete(app.url, app.model), range(NUM_REQUESTS)))
            got = requests_so_far(folder) - before
        finally:
            app.close()
    assert {answer.status_code for answer in answers} == {200}
    assert not [name for answer in answers for name in answer.headers if "room" in name]
    assert list(got.values()) == [NUM_REQUESTS]
