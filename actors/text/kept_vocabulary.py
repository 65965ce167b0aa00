"""Vocabularies that were read once, in the cache folder: a runner that goes on with a dead one's answers has them at once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
from pathlib import Path

from actors.model_files.source import ModelSource
from cluster.process.cache import cache_dir
from cluster.process.trusted_path import make_folder, other_writer

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_SUFFIX = ".vocabulary"
# About a megabyte each; who was not used for longest goes.
_MOST_FILES = 16


class KeptVocabulary:
    """The file of one model's vocabulary.

    Args:
        size: rows of the model's logits.
    """

    def __init__(self, source: ModelSource, size: int) -> None:
        self._source, self._size = source, size
        self._key = self._key_now()
        name = hashlib.sha256(self._key.encode()).hexdigest()[:32]
        self._path = cache_dir() / "vocabularies" / (name + _SUFFIX)

    def read(self) -> bytes | None:
        """What was written; None if there is nothing, or another user could have put it there."""
        if not self._key or other_writer(self._path) is not None:
            return None
        try:
            dumped = self._path.read_bytes()
            os.utime(self._path)
        except OSError:
            return None
        return dumped

    def write(self, dumped: bytes) -> None:
        """Keep it, unless the tokenizer's files changed since this was made."""
        folder = self._path.parent
        if not self._key or self._key_now() != self._key or other_writer(folder) is not None:
            return
        part = self._path.with_suffix(f".{os.getpid()}")
        try:
            make_folder(folder)
            part.write_bytes(dumped)
            os.replace(part, self._path)
            files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
            for file in files[:-_MOST_FILES]:
                file.unlink(missing_ok=True)
        except OSError as error:
            logger.info("the vocabulary is not kept, and read again by the next runner that needs it: %s", error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _key_now(self) -> str:
        """All that the bytes depend on; a file that is changed in place with its time and size kept is not noticed. Empty if
        there is no such file."""
        if self._source.tokenizer is None:
            return ""
        files: set[Path] = set()
        for path in (self._source.tokenizer, self._source.path):
            # Settings stand beside a file.
            files |= {path, *path.parent.glob("*.json")} if path.is_file() else set(path.glob("*.json"))
        code = [*sorted(_HERE.glob("*.py")), *sorted((_HERE.parent / "model_files").glob("*.py"))]
        try:
            stamps = [
                f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
                for file in sorted(files)
                if (stat := file.stat())
            ]
            rules = hashlib.sha256(b"\0".join(file.read_bytes() for file in code)).hexdigest()
        except OSError:
            return ""
        release = importlib.metadata.version("tokenizers")
        return "\n".join([self._source.kind, str(self._source.path), str(self._size), release, rules, *stamps])
