from __future__ import annotations

import pytest

from tests.engines import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of the random two-layer model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))
