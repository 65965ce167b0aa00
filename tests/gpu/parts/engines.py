"""Engines on the GPU for tests."""

from __future__ import annotations

import json
from pathlib import Path

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from cluster.config import EngineConfig
from tests.engines import FAMILIES, TINY_CONFIG


def write_tiny_gpu_model(folder: Path, family: str = "llama") -> Path:
    """A folder with the random two-layer model, with heads that the GPU kernels have."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(
            TINY_CONFIG | FAMILIES[family] | {"head_dim": 64, "hidden_size": 128, "max_position_embeddings": 8192}
        )
    )
    return folder


def gpu_engine(folder: Path, record: list | None = None, **settings) -> Engine:
    """An engine on the tiny model; settings as in EngineConfig."""
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_kv_blocks": 64, "device": "gpu"}
    return load_engine(EngineConfig(model=str(folder), load_format="dummy", **{**defaults, **settings}), record=record)
