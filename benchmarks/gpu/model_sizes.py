"""Configurations of the models that benchmarks make with random weights."""

from __future__ import annotations

from pathlib import Path

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
