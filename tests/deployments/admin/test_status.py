"""What GET /v1/status costs others when it cannot be answered."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import ray

from tests.chaos.served.processes import kinds
from tests.deployments.conftest import KEYS, App, wait_for


def asked(app: App) -> httpx.Response:
    return httpx.get(f"{app.url}/v1/status", headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=60)


def test_an_engine_is_called_as_its_replica_and_its_runner_are_in_the_dashboard(app: App):
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    replicas = {name.rpartition("#")[2] for name in names if "LLMServer#" in name}
    (engine,) = {engine["engine_id"] for engine in asked(app).json()["engines"]}
    assert {f"engine-{replica}" for replica in replicas} == {engine}
    assert [name for name in names if name.endswith(f"::{engine}")]


@pytest.mark.slow
def test_a_stopped_controller_costs_those_who_ask_an_error_and_others_nothing(app: App):
    assert asked(app).status_code == 200
    (controller,) = [pid for pid, kind in kinds().items() if kind == "controller"]
    with ThreadPoolExecutor(40) as pool, app.client() as client:
        os.kill(controller, signal.SIGSTOP)
        try:
            asking = [pool.submit(asked, app) for _ in range(40)]
            # Tokenised in a thread, of which a small machine has half a dozen.
            answers = [client.complete("word " * 2000, max_tokens=1) for _ in range(2)]
            assert [answer.choices[0].finish_reason for answer in answers] == ["length"] * 2
            assert {(a.result().status_code, a.result().json()["error"]["code"]) for a in asking} == {
                (503, "engine_unavailable")
            }
        finally:
            os.kill(controller, signal.SIGCONT)
    wait_for(lambda: asked(app).status_code == 200, 30, "the controller goes on and is not heard")
