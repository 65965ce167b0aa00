"""A tokenizer of bytes, in which the marks of some families are special tokens, as those of their models are."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from actors.text.tokenizer import Tokenizer as ModelTokenizer
from actors.text.tokenizer import TokenizerParts
from deployments.parsers.tool_formats import TOOL_FORMATS

END = "<|im_end|>"
# Of Hermes and Qwen they are words of the vocabulary, which skipping special tokens does not skip.
_SPECIAL_OF = ("mistral", "granite", "deepseek_v3", "llama3_json")
_WORDS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def tool_tokenizer(template: str | None = None, special_of: tuple[str, ...] = _SPECIAL_OF) -> ModelTokenizer:
    """``special_of``: families whose marks are special tokens."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(characters)}, merges=[]))
    marks = {mark for name in special_of for mark in TOOL_FORMATS[name].markers}
    special = [END, "<|im_start|>", *sorted(marks - set(_WORDS))]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken(token, special=False) for token in _WORDS])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    eos = backend.token_to_id(END)
    return ModelTokenizer(TokenizerParts(backend, eos_token_ids=(eos,), chat_template=template), "tiny")
