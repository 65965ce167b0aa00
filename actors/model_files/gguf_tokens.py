"""Tokens with a meaning that the metadata of a GGUF file names."""

from __future__ import annotations

from typing import Any

_CONTROL = 3
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")


def gguf_eos_token_ids(metadata: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that end a generation: those the metadata names, and the end-of-turn tokens of the vocabulary."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    ids = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    names = {*_END_OF_TURN}
    if metadata.get("tokenizer.ggml.pre") == "qwen2":
        names.add("<|endoftext|>")  # published generation configs of Qwen list both
    ids.update(i for i, (token, kind) in enumerate(zip(tokens, types)) if kind == _CONTROL and token in names)
    return tuple(sorted(i for i in ids if isinstance(i, int)))


def special_token_text(metadata: dict[str, Any], name: str) -> str:
    """Return the text of the 'bos', 'eos' or other named token, '' if the file names none."""
    tokens, token_id = metadata.get("tokenizer.ggml.tokens") or [], metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[token_id] if isinstance(token_id, int) and 0 <= token_id < len(tokens) else ""
