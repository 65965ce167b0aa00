"""Fixtures of the op tests."""

from __future__ import annotations

import pytest

from gpu_ops import forward


@pytest.fixture
def one_thread_afterwards():
    """For tests that set how many threads compute."""
    yield
    forward.set_num_threads(1)
