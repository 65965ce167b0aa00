"""Tokenizers small enough to reason about: one of bytes, with the GGUF metadata it is built from, and a SentencePiece one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from actors.text.gguf_tokenizer import build_tokenizer
from actors.text.tokenizer import Tokenizer, TokenizerParts
from tests.conftest import GOLDEN

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


def byte_tokenizer(template: str = "{{ messages[0].content }}") -> Tokenizer:
    backend = build_tokenizer(byte_level_metadata("gpt-2"), Path("tiny"))
    return Tokenizer(TokenizerParts(backend, chat_template=template), "tiny")


def sentencepiece_tokenizer() -> Tokenizer:
    metadata = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))["metadata"]
    backend = build_tokenizer(metadata, Path("sentencepiece"))
    return Tokenizer(TokenizerParts(backend, chat_template="{{ messages[0].content }}"), "sentencepiece")
