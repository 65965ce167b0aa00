"""Fixtures of the tests of HTTP servers."""

from __future__ import annotations

import pytest
from uvicorn.protocols.http import httptools_impl

from deployments.http.server.set_up import install_cycle


@pytest.fixture
def our_cycle(monkeypatch) -> None:
    """Servers of this process answer as those of an ingress do, as long as the test runs."""
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", httptools_impl.RequestResponseCycle)
    install_cycle()
