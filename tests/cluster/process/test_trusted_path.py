"""Who else could have put a file where it is."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.model_files import file_hash
from actors.model_files.download.default_model import ensure_default_model
from cluster.errors import ModelLoadError
from cluster.process.trusted_path import make_folder, other_writer
from gpu_ops import build as ops_build
from gpu_ops.build import OpBuildError, build, library_path

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give a file away")


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "a" / "b"
    make_folder(made)
    return made


def test_folders_are_made_for_this_user_alone_to_write_to_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_folder(tmp_path / "x" / "y")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x", "x/y")] == [0o755, 0o755]


def test_what_is_ours_alone_is_trusted_and_what_is_not_there_yet_too(folder):
    (folder / "file").touch(0o644)
    assert other_writer(folder / "file") is None
    assert other_writer(folder / "none" / "yet") is None
    assert other_writer(Path(tempfile.gettempdir()) / "none yet") is None, (
        "in a sticky folder nobody replaces a file of ours"
    )


@pytest.mark.parametrize("part", ["a", "a/b", "a/b/file"])
def test_a_part_that_others_may_write_to_is_named(folder, tmp_path, part):
    (folder / "file").touch(0o644)
    (tmp_path / part).chmod(0o757)
    assert other_writer(folder / "file") == f"{tmp_path / part} may be written to by other users (mode 0757)"


def test_a_link_through_a_folder_that_others_may_write_to_is_not_trusted(folder, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to(folder)
    assert other_writer(shared / "link" / "file") is None
    shared.chmod(0o777)
    assert str(shared) in (other_writer(shared / "link" / "file") or "")
    (tmp_path / "here").symlink_to(shared)
    assert str(shared) in (other_writer(tmp_path / "here" / "file") or "")


@as_root
def test_another_users_file_folder_or_link_is_not_trusted(folder, tmp_path):
    (folder / "file").touch(0o644)
    (tmp_path / "link").symlink_to(folder)
    assert other_writer(tmp_path / "link" / "file") is None
    for part in (folder / "file", folder, tmp_path / "link"):
        os.chown(part, NOBODY, -1, follow_symlinks=False)
        assert other_writer(tmp_path / "link" / "file") == f"{part} belongs to another user (uid {NOBODY})"
        os.chown(part, 0, -1, follow_symlinks=False)


@as_root
def test_a_group_may_write_only_if_it_is_this_users_own(folder):
    folder.chmod(0o775)
    assert other_writer(folder) is None
    os.chown(folder, -1, NOBODY)
    assert "may be written to by other users" in (other_writer(folder) or "")


@pytest.fixture
def shared_cache(tmp_path, monkeypatch) -> Iterator[Path]:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    monkeypatch.setenv("BIREME_CACHE", str(cache))
    return cache


def test_no_library_is_loaded_or_linked_from_a_cache_that_others_may_write_to(shared_cache, monkeypatch):
    monkeypatch.setattr(ops_build, "_compile", lambda target, progress: target.touch())
    planted = library_path()
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"\x7fELF")
    with pytest.raises(OpBuildError, match="BIREME_CACHE to a folder of your own") as caught:
        build()
    assert str(shared_cache) in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("BIREME_ONLY_USER", "1")
    assert build() == planted, "a pod has nobody else"
    monkeypatch.delenv("BIREME_ONLY_USER")
    shared_cache.chmod(0o755)
    assert build() == planted
    if os.geteuid() == 0:
        os.chown(planted, NOBODY, -1)
        with pytest.raises(OpBuildError, match=f"belongs to another user .uid {NOBODY}"):
            build()


def test_the_default_model_is_not_read_from_a_cache_that_others_may_write_to(shared_cache):
    with pytest.raises(ModelLoadError, match="BIREME_CACHE to a folder of your own"):
        ensure_default_model()
    assert list(shared_cache.iterdir()) == []


def test_remembered_hashes_that_others_may_have_written_are_not_believed(shared_cache, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"as published")
    shared_cache.chmod(0o755)
    published = file_hash.sha256_of(file)
    (note,) = (shared_cache / "hashes").iterdir()
    note.write_text(note.read_text().replace(published, "0" * 64))
    assert file_hash.sha256_of(file) == "0" * 64, "a note of our own is believed"
    shared_cache.chmod(0o777)
    assert file_hash.sha256_of(file) == published


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        OpBuildError, match=r"native ops cannot be written to .*; set BIREME_CACHE to a folder of your own"
    ):
        build()
