"""Where a model comes from: every accepted form, one download whatever happens, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from actors.model_files.source import ModelSource, resolve_model
from cluster.config import DEFAULT_MODEL
from cluster.errors import ModelLoadError

CONTENT = b"GGUF" + bytes(range(256)) * 64


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


def test_a_misspelt_model_is_refused_with_the_one_that_was_meant():
    with pytest.raises(
        ModelLoadError, match=f"is unknown; did you mean {DEFAULT_MODEL}\\?; allowed: {DEFAULT_MODEL}, a"
    ):
        resolve_model(DEFAULT_MODEL.replace("instruct", "instrct"))
    with pytest.raises(ModelLoadError, match="'mistral' is unknown; allowed: "):
        resolve_model("mistral")
