"""Hyperparameters in GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.layers.rope import RopeScaling, inverse_frequencies
from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import METADATA, random_tensors, tensor_shapes, write_gguf


def test_gguf_metadata(tmp_path: Path):
    shapes = {**tensor_shapes(), "output.weight": (32, 64), "blk.0.attn_q.bias": (64,)}
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0, "attention.key_length": 16}
    file = write_gguf(tmp_path / "m.gguf", random_tensors(shapes), arch="qwen2", metadata={**METADATA, **scaling})
    config = load_model_config(resolve_model(str(file)))
    assert (config.architecture, config.vocab_size, config.head_dim) == ("qwen2", 32, 16)
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.max_position_embeddings == 128
    assert not config.tie_word_embeddings
    assert config.attention_bias
    assert not config.rope_interleaved


def test_gguf_frequency_divisors(tmp_path: Path):
    divisors = np.array([1, 1, 2, 2, 4, 8, 8, 8], np.float32)
    tensors = {**random_tensors(tensor_shapes()), "rope_freqs.weight": divisors}
    config = load_model_config(resolve_model(str(write_gguf(tmp_path / "m.gguf", tensors))))
    plain = inverse_frequencies(10_000.0, 16, RopeScaling())
    np.testing.assert_allclose(inverse_frequencies(10_000.0, 16, config.rope_scaling), plain / divisors)


@pytest.mark.parametrize(
    ("arch", "metadata", "message"),
    [
        ("mamba", METADATA, "architecture 'mamba' is not supported"),
        (
            "llama",
            {k: v for k, v in METADATA.items() if k != "block_count"},
            "lacks the metadata key llama.block_count",
        ),
        ("llama", {**METADATA, "expert_count": 8}, "mixture of experts"),
        ("llama", {**METADATA, "rope.dimension_count": 8}, "rope.dimension_count differs"),
        ("llama", {**METADATA, "rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
    ],
)
def test_gguf_variants_that_are_refused(tmp_path: Path, arch: str, metadata: dict[str, Any], message: str):
    file = write_gguf(tmp_path / "m.gguf", random_tensors(tensor_shapes()), arch=arch, metadata=metadata)
    with pytest.raises(ModelLoadError, match=message):
        load_model_config(resolve_model(str(file)))
