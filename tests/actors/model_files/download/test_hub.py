"""Models named by a Hugging Face id come from the cache, else from the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.model_files.download import hub
from actors.model_files.source import resolve_model
from cluster.errors import ModelLoadError
from tests.actors.model_files.hub_server import serve_repository


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
