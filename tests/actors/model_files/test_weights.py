"""Weights from every kind of file: right values, right names, and errors that name the tensor."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.model_files.config import load_model_config
from actors.model_files.dummy import dummy_tensor
from actors.model_files.formats.layout import expected_tensors, to_half_rotation
from actors.model_files.formats.number_types import convert
from actors.model_files.source import ModelSource, resolve_model
from actors.model_files.weights import iter_weights, weights_fingerprint
from actors.models.config import ModelConfig
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import METADATA, write_gguf
from tests.actors.models.numpy_model import forward

TINY = sorted(path.parent.name for path in (Path(__file__).parents[2] / "golden").glob("*/config.json"))


def load(model: Path | str, **options) -> tuple[ModelSource, ModelConfig, dict[str, np.ndarray]]:
    source = resolve_model(str(model), **options)
    config = load_model_config(source)
    return source, config, dict(iter_weights(source, config))


@pytest.mark.parametrize("name", TINY)
def test_logits_of_tiny_models_match_transformers(golden: Path, name: str):
    _, config, weights = load(golden / name)
    reference = np.load(golden / name / "logits.npz")
    np.testing.assert_allclose(forward(config, weights, reference["token_ids"]), reference["logits"], atol=1e-4)


def test_logits_of_smollm2_match_transformers(smollm2_source: ModelSource, golden: Path):
    config = load_model_config(smollm2_source)
    reference = np.load(golden / "smollm2_first_logits.npz")
    logits = forward(config, dict(iter_weights(smollm2_source, config)), reference["token_ids"])
    np.testing.assert_allclose(logits[0], reference["first"], atol=5e-4)
    np.testing.assert_allclose(logits[-1], reference["last"], atol=5e-4)


def test_tensors_come_one_at_a_time_in_the_order_of_use(golden: Path):
    source = resolve_model(str(golden / "mistral_sharded"))
    config = load_model_config(source)
    names = [name for name, _ in iter_weights(source, config)]
    assert names == list(expected_tensors(config))
    assert len(names) == 21
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "lm_head.weight"


def test_gguf_llama_is_turned_into_half_rotation_order(golden: Path, tmp_path: Path):
    """The same model through GGUF, permuted as ggml's converter does, gives the same logits."""
    _, config, weights = load(golden / "llama_tied")
    permuted = {}
    for name, gguf_key in zip(expected_tensors(config), _gguf_keys(config)):
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2], 0)
        tensor = weights[name]
        if heads:
            tensor = tensor.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        permuted[gguf_key] = tensor
    metadata = {**METADATA, "embedding_length": 32, "feed_forward_length": 64, "block_count": 2}
    _, from_gguf, read = load(write_gguf(tmp_path / "m.gguf", permuted, metadata=metadata))
    assert from_gguf.rope_interleaved
    for name, tensor in weights.items():
        np.testing.assert_array_equal(read[name], tensor)


def _gguf_keys(config: ModelConfig) -> list[str]:
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    layers = [f"blk.{i}.{part}.weight" for i in range(config.num_layers) for part in layer]
    return ["token_embd.weight", *layers, "output_norm.weight"]


def test_half_rotation_order_pairs_what_was_neighbouring():
    rows = np.arange(2 * 6)  # two heads of six dimensions
    assert to_half_rotation(rows, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_output_dtypes(golden: Path):
    source, config, weights = load(golden / "llama_tied")
    name = "model.layers.0.mlp.up_proj.weight"
    half = dict(iter_weights(source, config, "float16"))[name]
    np.testing.assert_array_equal(half, weights[name].astype(np.float16))
    brain = dict(iter_weights(source, config, "bfloat16"))[name]
    assert brain.dtype == np.uint16
    widened = (brain.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(widened, weights[name], rtol=2**-8)
    with pytest.raises(ModelLoadError, match="allowed: float32, float16, bfloat16"):
        iter_weights(source, config, "int8")


def test_bfloat16_rounds_to_nearest_even_and_keeps_infinity_and_nan():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7FFFFFFF], np.uint32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80, 0x7FC0]
    assert convert(bits.view(np.float32), "bfloat16").tolist() == expected


def test_dummy_weights_look_random_in_every_type_and_no_two_rows_are_equal():
    """Longer than what they are cut from, so that every element of the source is used and some more than once."""
    name, shape = "model.layers.3.mlp.down_proj.weight", (4500, 1024)
    tensor = dummy_tensor(name, shape, 1)
    assert abs(tensor.mean()) < 1e-3
    assert abs(tensor.var() * shape[1] - 1) < 0.01
    assert len(np.unique(tensor[:, 0])) > 0.99 * shape[0]
    correlation = np.corrcoef(tensor[::500])
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.2
    for dtype in ("float16", "bfloat16"):
        assert (dummy_tensor(name, shape, 1, dtype) == convert(tensor, dtype)).all()
    assert (dummy_tensor("model.layers.4.mlp.down_proj.weight", shape, 1) != tensor).mean() > 0.99


def test_dummy_weights_depend_on_seed_and_name_alone(golden: Path):
    _, config, weights = load(golden / "qwen2", load_format="dummy", seed=5)
    _, _, again = load(golden / "qwen2", load_format="dummy", seed=5)
    _, _, other = load(golden / "qwen2", load_format="dummy", seed=6)
    up, gate = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate"))
    assert {name: t.shape for name, t in weights.items()} == expected_tensors(config)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert not np.array_equal(weights[up], other[up])
    assert not np.array_equal(weights[up], weights[gate])
    logits = forward(config, weights, np.arange(32))
    assert 0.3 < logits.std() < 3


def test_missing_tensor_is_named(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "qwen3", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"no tensor model\.layers\.1\.self_attn\.q_norm\.weight"):
        load(folder)


def test_misshapen_tensor_is_named_before_anything_is_read(golden: Path):
    source = resolve_model(str(golden / "qwen3"))
    config = replace(load_model_config(source), intermediate_size=96)
    with pytest.raises(
        ModelLoadError, match=r"gate_proj\.weight has shape \[64, 32\], the configuration wants \[96, 32\]"
    ):
        iter_weights(source, config)


def test_names_without_the_model_prefix_are_found(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "qwen3", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): t for name, t in tensors.items()}, folder / "model.safetensors")
    _, _, weights = load(folder)
    np.testing.assert_array_equal(weights["model.norm.weight"], tensors["model.norm.weight"])


def test_fingerprint_follows_content_not_place(golden: Path, tmp_path: Path):
    here = resolve_model(str(golden / "qwen3"))
    folder = shutil.copytree(golden / "qwen3", tmp_path / "elsewhere")
    copy = resolve_model(str(folder))
    assert weights_fingerprint(here) == weights_fingerprint(copy)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert weights_fingerprint(here) != weights_fingerprint(copy)
    seeds = {weights_fingerprint(resolve_model(str(folder), load_format="dummy", seed=seed)) for seed in (0, 1)}
    assert len(seeds | {weights_fingerprint(copy)}) == 3
