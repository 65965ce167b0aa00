"""Kept weights: the same bits, and nothing but a slower start where the file is damaged or cannot be written."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.model_files import ready_weights
from actors.model_files.ready_weights import ReadyArray, ReadyWeights

ARRAYS = {
    "a": np.arange(5000, dtype=np.float32).reshape(2, -1),
    "b": np.float32([-0.0, np.inf, 1e-42]),
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.arange(9001, dtype=np.uint8),
}
GIB = 1 << 30


def write(ready: ReadyWeights, arrays: dict[str, np.ndarray] = ARRAYS) -> bool:
    """In pieces of a thousand bytes, each overwritten once it was read."""

    def pieces(name: str) -> Iterator[np.ndarray]:
        data = arrays[name].reshape(-1).view(np.uint8)
        for start in range(0, data.size, 1000):
            piece = data[start : start + 1000].copy()
            yield piece
            piece[:] = 0

    return ready.write({name: ReadyArray(str(a.dtype), a.shape) for name, a in arrays.items()}, pieces)


def read(ready: ReadyWeights) -> dict[str, np.ndarray] | None:
    found = ready.find()
    return found.mapped() if found else None


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path))
    monkeypatch.setenv("BIREME_ONLY_USER", "1")
    monkeypatch.setattr(ready_weights, "MIN_BYTES", 0)
    return tmp_path / "ready_weights"


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_arrays_come_back_bit_by_bit_and_the_file_stays_as_it_is(folder: Path):
    assert read(ReadyWeights("k", GIB)) is None
    assert write(ReadyWeights("k", GIB))
    content = the_file(folder).read_bytes()
    found = read(ReadyWeights("k", GIB))
    assert found is not None and list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape and found[name].tobytes() == array.tobytes()
        assert found[name].ctypes.data % 4096 == 0 or not array.size
    found["a"][0, 0] = 7  # a stray write reaches neither the file nor another engine
    assert the_file(folder).read_bytes() == content
    assert read(ReadyWeights("other", GIB)) is None


@pytest.mark.parametrize("damage", ["header", "cut", "longer", "empty", "foreign"])
def test_a_damaged_file_is_not_used_and_is_replaced(folder: Path, damage: str):
    ready = ReadyWeights("k", GIB)
    write(ready)
    path = the_file(folder)
    sound = path.read_bytes()
    swapped = sound.replace(b'["a", [2', b'["a", [1', 1)
    assert swapped != sound
    damaged = {"header": swapped, "cut": sound[:-1], "longer": sound + b"\0", "empty": b"", "foreign": b"GGUF" * 4096}
    path.write_bytes(damaged[damage])
    assert read(ready) is None
    assert write(ready) and path.read_bytes() == sound
    assert json.loads(sound.split(b"\n")[0].partition(b" ")[2])["arrays"][0][0] == "a"


@settings(max_examples=30)
@given(st.data())
def test_a_flipped_bit_of_any_array_is_noticed(tmp_path_factory, data: st.DataObject):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready_weights, "cache_dir", lambda: tmp_path_factory.mktemp("flipped"))
        patch.setattr(ready_weights, "_CHECKED_BYTES", data.draw(st.sampled_from([999, 4096, 50_000])))
        ready = ReadyWeights("k", GIB)
        assert write(ready)
        found = ready.find()
        assert found is not None and found.damaged_array(3) is None
        name = data.draw(st.sampled_from([name for name, array in ARRAYS.items() if array.size]))
        array = found.arrays[name]
        byte = array.offset + data.draw(st.integers(0, array.num_bytes - 1))
        content = bytearray(found.path.read_bytes())
        content[byte] ^= 1 << data.draw(st.integers(0, 7))
        found.path.write_bytes(content)
        again = ready.find()
        assert again is not None, "its header is as it was"
        assert again.damaged_array(3) == name
        stop = threading.Event()
        stop.set()
        assert again.damaged_array(3, stop) is None, "nobody wants to know"
        again.discard()
        assert ready.find() is None
        again.discard()


def test_a_file_that_is_cut_off_after_it_was_found_is_an_error(folder: Path):
    ready = ReadyWeights("k", GIB)
    write(ready)
    found = ready.find()
    assert found is not None
    os.truncate(found.path, found.num_bytes - 4096)
    with pytest.raises(OSError, match="ended early"):
        found.damaged_array(1)


def test_what_was_used_last_stays(folder: Path):
    size = 3 * 8192
    first, second, third = (ReadyWeights(key, size) for key in "123")
    array = {"a": np.ones(1500, np.float32)}  # two pages, and one for the header
    assert write(first, array) and write(second, array)
    for age, path in enumerate(sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime), 1):
        os.utime(path, (time.time() - 100 / age, time.time() - 100 / age))
    assert read(first) is not None  # the older one was used last
    assert write(third, array)
    assert [read(ready) is not None for ready in (first, second, third)] == [True, False, True]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= size + 4096
    assert not write(ReadyWeights("4", 100), array), "it alone is too much"


def test_without_a_limit_one_model_is_kept_whatever_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ready_weights, "_DEFAULT_LIMIT_BYTES", 3 * 8192)
    large, small = {"a": np.ones(10_000, np.float32)}, {"a": np.ones(1500, np.float32)}
    assert write(ReadyWeights("1", None), small) and write(ReadyWeights("2", None), large)
    assert read(ReadyWeights("1", None)) is None and read(ReadyWeights("2", None)) is not None
    assert write(ReadyWeights("1", None), small)
    assert read(ReadyWeights("2", None)) is None, "with a small one the limit is as ever"


def test_a_disk_is_never_filled(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ready_weights, "_FREE_BYTES", 1 << 60)
    assert not write(ReadyWeights("k", GIB)) and list(folder.iterdir()) == []


def test_without_a_place_to_write_there_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    folder.write_bytes(b"")  # a file where the folder should be; root may write to whatever is read-only
    assert not write(ReadyWeights("k", GIB))
    assert read(ReadyWeights("k", GIB)) is None
    folder.unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ready_weights.os, "fsync", full)
    assert not write(ReadyWeights("k", GIB))
    assert list(folder.iterdir()) == [], "nothing half written stays"


def test_what_others_may_write_to_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ready = ReadyWeights("k", GIB)
    assert write(ready)
    monkeypatch.delenv("BIREME_ONLY_USER")
    folder.chmod(0o777)
    assert read(ready) is None and not write(ready)
    folder.chmod(0o755)


def test_one_process_writes_and_what_a_dead_one_left_goes(folder: Path):
    ready = ReadyWeights("k", GIB)
    folder.mkdir()
    write(ready)
    part = the_file(folder).with_suffix(".part")
    part.write_bytes(b"half")
    assert not write(ready) and part.read_bytes() == b"half"
    os.utime(part, (1, 1))
    assert write(ready) and not part.exists()


def test_a_limit_of_nothing_turns_it_off(folder: Path):
    assert not write(ReadyWeights("k", 0))
    write(ReadyWeights("k", GIB))
    assert read(ReadyWeights("k", 0)) is None
