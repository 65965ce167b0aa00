"""Fixtures for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from actors.model_files.source import ModelSource, resolve_model
from actors.text.tokenizer import Tokenizer, load_tokenizer
from cluster.config import DEFAULT_MODEL

GOLDEN = Path(__file__).parent / "golden"

# How long an example takes says how busy the machine is.
settings.register_profile("bireme", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bireme")

# A shell without job control starts background commands with SIGINT ignored, and every child would inherit that: commands
# that tests end with Ctrl-C would never hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_source() -> ModelSource:
    """The default model, from the cache or downloaded into it once."""
    return resolve_model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_source: ModelSource) -> Tokenizer:
    """The default model's tokenizer."""
    return load_tokenizer(smollm2_source)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference values that tests/golden/make_golden.py wrote."""
    return GOLDEN
