"""A model as a hub's cache has it on the disk of one node."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import save_file

from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights
from tests.chaos.served.application import MODEL
from tests.engines import write_tiny_model

REPO = "owner/tiny"


def hub_cache(folder: Path) -> Path:
    """A hub's cache with the model in it, as a download leaves it; random weights."""
    write_tiny_model(folder / "shape")
    (folder / "shape" / "config.json").write_text(json.dumps(MODEL))
    shape = resolve_model(str(folder / "shape"), load_format="dummy", seed=5)
    snapshot = folder / "models--owner--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text((folder / "shape" / "config.json").read_text())
    (snapshot / "generation_config.json").write_text('{"top_k": 7}')
    save_file(dict(iter_weights(shape, load_model_config(shape))), snapshot / "model.safetensors")
    return folder
