"""What Serve and the ingresses say of an application whose engines come and go."""

from __future__ import annotations

import httpx
from ray import serve

from tests.chaos.served.processes import kinds
from tests.deployments.conftest import App


def controllers() -> list[int]:
    return [pid for pid, kind in kinds().items() if kind == "controller"]


def status_of(app: App) -> dict:
    return httpx.get(app.url + "/v1/status", timeout=30).json()


def health(app: App) -> tuple[int, str]:
    try:
        answer = httpx.get(app.url + "/health")
    except httpx.HTTPError as error:
        return 0, str(error)
    return answer.status_code, answer.json()["status"] if answer.status_code == 200 else ""


def num_engines(app: str, state: str = "RUNNING") -> int:
    deployment = serve.status().applications[app].deployments["LLMServer"]
    return deployment.replica_states.get(state, 0)
