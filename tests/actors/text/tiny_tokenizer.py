"""GGUF metadata of a byte-level tokenizer small enough to reason about."""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers

SPECIAL = ["<s>", "</s>", "<|im_end|>"]


def byte_level_metadata(pre: str, **changes: Any) -> dict[str, Any]:
    """A vocabulary of the 256 bytes, a few merges, and special tokens at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll", "hell o", "1 2", "12 3", "Ġ Ġ"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), *SPECIAL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - len(SPECIAL)) + [3] * len(SPECIAL),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        **changes,
    }
