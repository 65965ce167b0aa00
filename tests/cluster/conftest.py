"""What tests of clients and of the terminal share."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def dead() -> Iterator[str]:
    """An address at which nobody listens, kept from being given to anybody else."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
