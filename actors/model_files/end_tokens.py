"""Which tokens end a generation: one reader for the engine, which stops at them, and the ingress, which tells why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.model_files.gguf.file import read_gguf
from actors.model_files.gguf.split import is_gguf
from actors.model_files.gguf.tokens import gguf_eos_token_ids
from actors.model_files.json_file import read_json, read_optional_json, special_tokens
from actors.model_files.source import ModelSource
from cluster.errors import ModelLoadError


def eos_token_ids(source: ModelSource) -> tuple[int, ...]:
    """Return, sorted, every id that ends a generation of this model by default.

    Of a directory: what config.json, generation_config.json and, by its text, tokenizer_config.json name. Of a GGUF file: what
    its metadata names, and the end-of-turn tokens of its vocabulary. A tokenizer that was chosen instead of the model's own
    adds what the files beside it name; ids that the model cannot generate are left out there.

    Raises:
        ModelLoadError: an id is no integer, or a file is damaged.
    """
    ids = _gguf_ids(source.path) if source.is_gguf else _folder_ids(source.path)
    tokenizer = source.tokenizer
    if tokenizer is None or (tokenizer == source.path and source.is_gguf):
        return tuple(sorted(ids))
    if is_gguf(tokenizer):
        more = _gguf_ids(tokenizer)
    else:
        folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
        more = _folder_ids(folder) | _named_ids(tokenizer, folder)
    return tuple(sorted(ids | {i for i in more if i < _vocab_size(source)}))


def _gguf_ids(path: Path) -> set[int]:
    return set(gguf_eos_token_ids(read_gguf(path).metadata, path))


def _folder_ids(folder: Path) -> set[int]:
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = read_optional_json(folder / name).get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        for token in values:
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise ModelLoadError(
                    f"{folder / name}: eos_token_id is {value!r}; it must be an integer from 0 on, or a list of them.",
                    "model",
                )
        ids.update(values)
    return ids


def _named_ids(tokenizer: Path, folder: Path) -> set[int]:
    """The id of ``eos_token``, which files name by its text."""
    text = special_tokens(folder).get("eos_token")
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if text is None or not file.is_file():
        return set()
    content = read_json(file, "tokenizer")
    for entry in content.get("added_tokens") or []:
        if entry.get("content") == text:
            return {entry["id"]}
    vocab: Any = (content.get("model") or {}).get("vocab")
    if isinstance(vocab, dict):
        return {vocab[text]} if text in vocab else set()
    return {i for i, entry in enumerate(vocab or []) if entry[0] == text}


def _vocab_size(source: ModelSource) -> int:
    if source.is_gguf:
        embedding = read_gguf(source.path).tensors.get("token_embd.weight")
        return embedding.shape[0] if embedding is not None else 0
    size = read_json(source.path / "config.json").get("vocab_size")
    return size if isinstance(size, int) else 0
