"""Hashes of model files follow their content and are remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from actors.model_files import file_hash
from actors.model_files.file_hash import content_id, sha256_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BIREME_CACHE", str(folder))
    return folder


def test_hashes_are_remembered_until_the_file_changes(cache: Path, tmp_path: Path):
    file = tmp_path / "f"
    file.write_bytes(b"one")
    assert sha256_of(file) == hashlib.sha256(b"one").hexdigest()
    stat = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256_of(file) == hashlib.sha256(b"one").hexdigest()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert sha256_of(file) == content_id(file) == hashlib.sha256(b"two").hexdigest()


def test_large_files_are_told_apart_by_samples(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_hash, "SAMPLE_ABOVE_BYTES", 2**20)
    monkeypatch.setattr(file_hash, "_CHUNK", 64)
    contents = [bytearray(2**21) for _ in range(4)]
    contents[1][0], contents[2][-1] = 1, 1
    contents[3].append(0)
    ids = set()
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
        ids.add(content_id(tmp_path / str(i)))
    assert len(ids) == 4
