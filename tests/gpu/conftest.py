"""Tests of this folder need a GPU; without one they are skipped, with the reason."""

from __future__ import annotations

import os
from importlib import util

import paddle
import pytest

# The engine needs what a machine that is only there for its GPU may not have; the ops do not.
collect_ignore = (
    []
    if util.find_spec("pydantic")
    else [
        "test_engine_gpu.py",
        "test_families.py",
        "test_grammar_gpu.py",
        "test_kept_weights.py",
        "test_random_steps.py",
    ]
)


@pytest.fixture(scope="session")
def tiny_gpu_model(tmp_path_factory):
    """Folder of the random two-layer model with heads that the GPU kernels have."""
    from tests.gpu.parts.engines import write_tiny_gpu_model

    return write_tiny_gpu_model(tmp_path_factory.mktemp("tiny-gpu-model"))


def missing_gpu() -> str | None:
    """Why the GPU tests cannot run here, None if they can."""
    if not paddle.is_compiled_with_cuda():
        return "Paddle was built without CUDA (paddlepaddle-gpu is not installed)"
    if not paddle.device.cuda.device_count():
        return "Paddle finds no GPU"
    return None


def pytest_collection_modifyitems(items):
    reason = missing_gpu()
    on_cpu = (
        ["test_serving_gpu", "test_serve_run", "test_spares_gpu"]
        if os.environ.get("BIREME_SERVING_DEVICE") == "cpu"
        else []
    )
    for item in items:
        if reason and "tests/gpu/" in item.path.as_posix() and item.path.stem not in on_cpu:
            item.add_marker(pytest.mark.skip(reason=reason))
