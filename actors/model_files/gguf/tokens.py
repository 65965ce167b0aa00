"""Tokens with a meaning that the metadata of a GGUF file names."""

from __future__ import annotations

from typing import Any

from cluster.errors import ModelLoadError

# Converters often write one id where the published generation config has several, and give these tokens any type.
END_OF_TURN = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
        "<｜end▁of▁sentence｜>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
    }
)


def gguf_eos_token_ids(metadata: dict[str, Any], where: object) -> tuple[int, ...]:
    """Return the ids that end a generation: those the metadata names, and the end-of-turn tokens of the vocabulary.

    Raises:
        ModelLoadError: an id in the metadata is no integer.
    """
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    ids = {i for i, token in enumerate(tokens) if token in END_OF_TURN}
    named = [(key, metadata.get(key)) for key in map("tokenizer.ggml.{}_token_id".format, ("eos", "eot", "eom"))]
    several = "tokenizer.ggml.eos_token_ids"
    listed = metadata.get(several)
    named += [(several, value) for value in (listed if isinstance(listed, (list, tuple)) else [listed])]
    for key, value in named:
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelLoadError(f"{where}: {key} is {value!r}; it must be an integer from 0 on.", "model")
        ids.add(value)
    return tuple(sorted(ids))


def special_token_text(metadata: dict[str, Any], name: str) -> str:
    """Return the text of the 'bos', 'eos' or other named token, '' if the file names none."""
    tokens, token_id = metadata.get("tokenizer.ggml.tokens") or [], metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[token_id] if isinstance(token_id, int) and 0 <= token_id < len(tokens) else ""
