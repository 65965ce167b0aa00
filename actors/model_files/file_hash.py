"""SHA-256 of model files, remembered by size and modification time, so that a second start does not read them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from cluster.process.cache import cache_dir
from cluster.process.trusted_path import make_folder, other_writer

SAMPLE_ABOVE_BYTES = 2 << 30
# Of a file that goes from node to node.
CHUNK_BYTES = 8 << 20
_CHUNKS = f"chunks of {CHUNK_BYTES}"
_CHUNK = 4 << 20
_SAMPLES = 256


def sha256_of(path: Path, cached: bool = True) -> str:
    """Return the hex SHA-256 of the whole file.

    Args:
        cached: use and update the remembered hash; a file changed in place with its time and size kept is not noticed.
    """
    return _remembered(path, "full", _full) if cached else _full(path)


def content_id(path: Path) -> str:
    """Return a hex digest that tells files apart, equal on every machine: the whole content up to 2 GiB.

    Larger files give the digest of their size and of 256 evenly spaced chunks of 4 MiB, first and last included.
    """
    return sha256_of(path) if path.stat().st_size <= SAMPLE_ABOVE_BYTES else _remembered(path, "sampled", _sampled)


def chunk_digests(path: Path, done: Callable[[int], None] = lambda num_bytes: None) -> tuple[str, ...]:
    """Return the hex SHA-256 of every CHUNK_BYTES of the file, the last one shorter; none for an empty one.

    Args:
        done: called with the bytes of each chunk that was read; not where the hashes are remembered.
    """

    def compute(path: Path) -> str:
        digests = []
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digests.append(hashlib.sha256(chunk).hexdigest())
                done(len(chunk))
        return " ".join(digests)

    return tuple(_remembered(path, _CHUNKS, compute).split())


def remember_chunk_digests(path: Path, digests: tuple[str, ...]) -> None:
    """The chunks of ``path`` were checked before they were written: they need not be read again."""
    _remembered(path, _CHUNKS, lambda path: " ".join(digests))


def _full(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(_SAMPLES):
            file.seek((size - _CHUNK) * i // (_SAMPLES - 1))
            digest.update(file.read(_CHUNK))
    return digest.hexdigest()


def _remembered(path: Path, kind: str, compute) -> str:
    path = path.resolve()
    stat = path.stat()
    stamp = [kind, stat.st_size, stat.st_mtime_ns, stat.st_ino]
    folder = cache_dir() / "hashes"
    if other_writer(folder) is not None:
        return compute(path)  # a note there may be anybody's
    note = folder / hashlib.sha256(f"{kind}\0{path}".encode()).hexdigest()[:32]
    try:
        known = json.loads(note.read_text())
        if known["stamp"] == stamp:
            return known["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = compute(path)
    try:
        make_folder(folder)
        partial = note.with_name(f"{note.name}.{os.getpid()}")
        partial.write_text(json.dumps({"path": str(path), "stamp": stamp, "digest": digest}))
        os.replace(partial, note)
    except OSError:
        pass  # a cache that cannot be written only costs time
    return digest
