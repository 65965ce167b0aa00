"""What a node offers of a model: names, sizes and a SHA-256 of every chunk; nothing of it is believed before it was checked."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from actors.model_files.file_hash import CHUNK_BYTES
from actors.model_files.gguf.split import gguf_parts, is_gguf
from actors.model_files.source import ModelSource

MODEL, TOKENIZER = "model", "tokenizer"
_KINDS = ("gguf", "safetensors", "dummy")
# What engines and ingresses read of a directory besides its weights.
_SMALL_FILES = ("*.json", "*.jinja")
# Beside a tokenizer.json that is named itself.
_BESIDE_TOKENIZER = ("special_tokens_map.json", "tokenizer_config.json", "chat_template.json", "chat_template.jinja")
_MAX_FILES, _MAX_FILE_BYTES, _MAX_NAME_BYTES = 4096, 1 << 44, 255
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """It is not one that a node may follow, or the model cannot be offered."""


class FileEntry(NamedTuple):
    """One file: in which of the two folders, ``model`` or ``tokenizer``, its plain name, bytes, and hex SHA-256 by chunk."""

    folder: str
    name: str
    size: int
    digests: tuple[str, ...]


class Manifest(NamedTuple):
    """A model as files.

    Attributes:
        kind, name, seed: as in ``ModelSource``.
        path, tokenizer: "folder" or "folder/name"; tokenizer may be empty.
    """

    kind: str
    name: str
    seed: int
    path: str
    tokenizer: str
    files: tuple[FileEntry, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size for file in self.files)

    @property
    def identity(self) -> str:
        """Equal where every byte of every file is."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """What ``parse_manifest`` reads."""
        return json.dumps(self)

    def source(self, folder: Path) -> ModelSource:
        """The model, its files being in ``folder``."""
        tokenizer = folder / self.tokenizer if self.tokenizer else None
        return ModelSource(self.kind, folder / self.path, tokenizer, self.name, self.seed)  # type: ignore[arg-type]


def offered_files(source: ModelSource) -> list[tuple[str, Path]]:
    """(folder in the manifest, file) of all that is read of a model."""
    if source.is_gguf:
        found = {(MODEL, path) for path in gguf_parts(source.path)}
    else:
        found = {(MODEL, path) for path in [*_small_files(source.path), *source.weight_files()]}
    tokenizer = source.tokenizer
    if tokenizer is not None and not _is_of_model(source):
        found |= {(TOKENIZER, path) for path in _tokenizer_files(tokenizer)}
    return sorted(found)


def make_manifest(source: ModelSource, files: list[tuple[str, Path]], digests: list[tuple[str, ...]]) -> Manifest:
    """The manifest of ``offered_files(source)``, whose chunks have these ``digests``.

    Raises:
        ManifestError: the name of a file, or its place, is none that can be passed on.
    """
    entries = tuple(
        FileEntry(folder, path.name, path.stat().st_size, found)
        for (folder, path), found in zip(files, digests, strict=True)
    )
    path = MODEL if source.path.is_dir() else f"{MODEL}/{source.path.name}"
    tokenizer = ""
    if source.tokenizer is not None:
        folder = MODEL if _is_of_model(source) else TOKENIZER
        tokenizer = folder if source.tokenizer.is_dir() else f"{folder}/{source.tokenizer.name}"
    return parse_manifest(Manifest(source.kind, source.name, source.seed, path, tokenizer, entries).to_json())


def parse_manifest(text: str) -> Manifest:
    """Read what a peer sent.

    Raises:
        ManifestError: something in it is not as it must be. Names are plain: none leads out of the folder it is put in.
    """
    try:
        kind, name, seed, path, tokenizer, rows = json.loads(text)
        files = tuple(_entry(*row) for row in rows)
    except (ValueError, TypeError) as error:
        raise error if isinstance(error, ManifestError) else ManifestError(f"no manifest: {error}") from None
    places = {MODEL, TOKENIZER} | {f"{file.folder}/{file.name}" for file in files}
    known = {(file.folder, file.name) for file in files}
    if not files or len(files) > _MAX_FILES or len(known) < len(files):
        raise ManifestError(f"{len(files)} files, {len(known)} of different names")
    if kind not in _KINDS or path not in places or tokenizer not in {"", *places}:
        raise ManifestError(f"kind {kind!r}, path {path!r}, tokenizer {tokenizer!r}")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 1024:
        raise ManifestError("the model's name is not printable")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ManifestError(f"seed {seed!r}")
    return Manifest(kind, name, seed, path, tokenizer, files)


def num_chunks(size: int) -> int:
    """Of a file of so many bytes."""
    return -(-size // CHUNK_BYTES)


def _entry(folder: Any, name: Any, size: Any, digests: Any) -> FileEntry:
    if folder not in (MODEL, TOKENIZER) or not _is_plain(name):
        raise ManifestError(f"a file may not be named {folder!r}, {name!r}")
    if type(size) is not int or not 0 <= size <= _MAX_FILE_BYTES or not isinstance(digests, list):
        raise ManifestError(f"{name}: size {size!r}")
    if len(digests) != num_chunks(size) or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests):
        raise ManifestError(f"{name}: {len(digests)} digests for {size} bytes")
    return FileEntry(folder, name, size, tuple(digests))


def _is_plain(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and 0 < len(name.encode()) <= _MAX_NAME_BYTES
    )


def _tokenizer_files(tokenizer: Path) -> list[Path]:
    if tokenizer.is_dir():
        return _small_files(tokenizer)
    if is_gguf(tokenizer):
        return gguf_parts(tokenizer)
    return [tokenizer, *(path for name in _BESIDE_TOKENIZER if (path := tokenizer.parent / name).is_file())]


def _small_files(folder: Path) -> list[Path]:
    found = [path for pattern in _SMALL_FILES for path in folder.glob(pattern)]
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _is_of_model(source: ModelSource) -> bool:
    return source.tokenizer in (source.path, *([] if source.is_gguf else [source.path / "tokenizer.json"]))
