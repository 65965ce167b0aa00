"""Configurations of the models that benchmarks make with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA_8B = Path(__file__).parents[2] / "ray_configs/llama_8b/config.json"
SMOLLM2_SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def write_config(folder: Path, sizes: dict[str, Any]) -> None:
    """The configuration of a Llama of these sizes, and of Llama-3.1-8B's where they say nothing; for random weights."""
    (folder / "config.json").write_text(json.dumps(json.loads(LLAMA_8B.read_text()) | sizes))
