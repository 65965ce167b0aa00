"""Fixtures of the tests between ingress and engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from deployments.routing.router.engine_choices import EngineChoices
from tests.engines import write_tiny_model


@pytest.fixture
def this_node(monkeypatch):
    """Where this process is, which Ray knows only of a cluster."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "this node"))


@pytest.fixture
def choices() -> EngineChoices:
    """One engine that the router knows."""
    made = EngineChoices()
    made.set_engines({"e": "f"})
    return made


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of the random two-layer model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))
