"""A tokenizer for the tiny model whose tokens are what JSON is made of, alone and joined."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from actors.text.tokenizer import Tokenizer as ModelTokenizer
from actors.text.tokenizer import TokenizerParts

EOS = 2
VOCAB_SIZE = 128  # of the model; the last ids are no tokens
_SPECIAL = ["<unk>", "<s>", "</s>"]
_MERGES = [
    '{ "', '" :', '" ,', '" }', "t r", "u e", "tr ue", "n u", "l l", "nu ll", "1 2", '": Ġ', '": "', "[ ]", '": {"', "a b",
    "ab ab", "0 0",
]  # fmt: skip


def _backend() -> Tokenizer:
    characters = ["Ġ", "Ċ", *map(chr, range(33, 127))]
    tokens = [*_SPECIAL, *characters, *(merge.replace(" ", "") for merge in _MERGES)]
    assert len(set(tokens)) == len(tokens) < VOCAB_SIZE
    merges = [tuple(merge.split(" ")) for merge in _MERGES]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def json_tokenizer() -> ModelTokenizer:
    return ModelTokenizer(TokenizerParts(_backend(), eos_token_ids=(EOS,)), "tiny")


def write_json_tokenizer(folder: Path) -> Path:
    """Beside a tiny model's configuration."""
    _backend().save(str(folder / "tokenizer.json"))
    return folder
