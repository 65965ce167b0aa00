"""Families of the registry: tensor names of GGUF files, the same model from either kind of file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from actors.model_files.config import load_model_config
from actors.model_files.formats.layout import expected_tensors, gguf_name, rotated_heads
from actors.model_files.formats.number_types import convert
from actors.model_files.formats.safetensors import read_header
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights
from actors.models.registry import FAMILIES, family_of_json
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import random_tensors, write_gguf
from tests.actors.models.test_models import all_logits, load

ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def to_gguf(folder: Path, path: Path, extra: dict[str, Any] | None = None) -> Path:
    """Convert a folder as ggml's converter does, with names from the ``gguf`` package."""
    raw = json.loads((folder / "config.json").read_text())
    source = resolve_model(str(folder))
    config, arch = load_model_config(source), raw["model_type"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], config.num_layers)
    tensors = {}
    stored = read_header(folder / "model.safetensors")
    for name in expected_tensors(config):
        tensor = stored[name].read()
        heads = rotated_heads(name, config) if arch == "granite" else 0
        if heads:
            tensor = tensor.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tensor
    keys = gguf.Keys
    metadata = {
        keys.LLM.CONTEXT_LENGTH: raw["max_position_embeddings"],
        keys.LLM.EMBEDDING_LENGTH: raw["hidden_size"],
        keys.LLM.FEED_FORWARD_LENGTH: raw["intermediate_size"],
        keys.LLM.BLOCK_COUNT: raw["num_hidden_layers"],
        keys.Attention.HEAD_COUNT: raw["num_attention_heads"],
        keys.Attention.HEAD_COUNT_KV: raw["num_key_value_heads"],
        keys.Attention.LAYERNORM_RMS_EPS: raw["rms_norm_eps"],
        keys.Rope.FREQ_BASE: raw["rope_parameters"]["rope_theta"],
    }
    if arch == "granite":
        metadata |= {
            keys.Attention.SCALE: raw["attention_multiplier"],
            keys.LLM.EMBEDDING_SCALE: raw["embedding_multiplier"],
            keys.LLM.RESIDUAL_SCALE: raw["residual_multiplier"],
            keys.LLM.LOGIT_SCALE: raw["logits_scaling"],
        }
    tokens = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 1}
    metadata = {key.removeprefix("{arch}."): value for key, value in metadata.items()}
    return write_gguf(path, tensors, arch=arch, metadata=metadata | (extra or {}), extra=tokens)


@pytest.mark.parametrize("name", ["granite", "granite_bias", "olmo2", "olmo2_bias"])
def test_a_model_from_gguf_gives_the_logits_of_transformers(golden: Path, tmp_path: Path, name: str):
    file = to_gguf(golden / name, tmp_path / "m.gguf")
    reference = np.load(golden / name / "logits.npz")
    model, from_safetensors = load(file), load(golden / name)
    token_ids = reference["token_ids"]
    logits = all_logits(model, token_ids, [20, 1, 27])
    assert np.abs(logits - reference["logits"]).max() < 1e-4
    assert (logits == all_logits(from_safetensors, token_ids, [48])).all()
    assert model.config.eos_token_ids == (2,)
    assert model.config.tie_word_embeddings == from_safetensors.config.tie_word_embeddings


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_multipliers_are_folded_before_a_weight_is_rounded(golden: Path, load_format: str):
    """In every type, and for random weights too; embeddings and a head tied to them stay as they are."""
    source = resolve_model(str(golden / "granite"), load_format=load_format)
    config = load_model_config(source)
    plain = replace(config, embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0)
    stored = dict(iter_weights(source, plain))
    for name, tensor in iter_weights(source, config, "bfloat16"):
        factor = 0.22 / 12 if "o_proj" in name or "down_proj" in name else 1 / 8 if name == "model.norm.weight" else 1
        assert (tensor == convert(stored[name] * np.float32(factor), "bfloat16")).all(), name


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.in_gguf])
def test_names_in_gguf_files_are_those_of_the_gguf_package(golden: Path, name: str):
    config = load_model_config(resolve_model(str(golden / {"llama": "llama_bias"}.get(name, name))))
    names = gguf.get_tensor_name_map(ARCHITECTURES[name], config.num_layers)
    for tensor in expected_tensors(config):
        assert gguf_name(tensor, config) == names.get_name(tensor, try_suffixes=(".weight", ".bias"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_known_by_model_type_and_by_class(family):
    assert family_of_json({"model_type": family.name, "architectures": ["X"]}, "config.json") is family
    assert family_of_json({"architectures": [family.hf_class]}, "config.json") is family


def test_an_unknown_family_is_refused_with_a_list_of_the_known_ones():
    with pytest.raises(ModelLoadError) as caught:
        family_of_json({"architectures": ["MambaForCausalLM"]}, "config.json")
    known = "llama, mistral, qwen2, qwen3, ernie4_5, granite, olmo2"
    assert caught.value.message == f"config.json: architecture 'MambaForCausalLM' is not supported; supported: {known}."


@pytest.mark.parametrize(
    "key", ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"]
)
@pytest.mark.parametrize("value", [0, -1.0, float("inf")])
def test_a_multiplier_that_cannot_be_is_refused_by_name(golden: Path, tmp_path: Path, key: str, value: float):
    raw = json.loads((golden / "granite" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(ModelLoadError, match="must be above 0 and finite"):
        load_model_config(resolve_model(str(tmp_path), load_format="dummy"))


def test_a_gguf_file_without_its_multipliers_is_refused(tmp_path: Path):
    metadata = {"context_length": 128, "embedding_length": 64, "feed_forward_length": 96, "block_count": 1}
    heads = {"attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5}
    file = write_gguf(
        tmp_path / "m.gguf", random_tensors({"token_embd.weight": (32, 64)}), arch="granite", metadata=metadata | heads
    )
    with pytest.raises(ModelLoadError, match=r"lacks the metadata key granite\.embedding_scale"):
        load_model_config(resolve_model(str(file)))


def test_olmo_3_in_a_gguf_file_is_refused(golden: Path, tmp_path: Path):
    file = to_gguf(golden / "olmo2", tmp_path / "m.gguf", {"attention.sliding_window": 4096})
    with pytest.raises(ModelLoadError, match=r"olmo2\.attention\.sliding_window, a variant"):
        load_model_config(resolve_model(str(file)))


def test_the_documents_list_every_family():
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text().partition("\n## ")[0]
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert listed[1:] == list(FAMILIES)
