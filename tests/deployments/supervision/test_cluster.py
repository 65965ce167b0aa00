"""A server that leaves a cluster takes what is its own with it."""

from __future__ import annotations

import httpx
from ray import serve

from deployments.supervision.server import take_down
from tests.deployments.conftest import App


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
def greets() -> str:
    return "hello"


def test_other_applications_of_the_cluster_go_on(app: App):
    for name in ("one", "two"):
        serve.run(greets.bind(), name=name, route_prefix=None)
    try:
        take_down(["one", "of nobody"])
        assert serve.status().applications.keys() >= {"default", "two"}
        assert "one" not in serve.status().applications
        take_down([])  # of a start that failed early
        assert serve.get_app_handle("two").remote().result(timeout_s=30) == "hello"
        assert httpx.get(app.url + "/health", timeout=30).status_code == 200
    finally:
        serve.delete("two")
