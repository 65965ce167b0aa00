"""What a file says is used, listed in the log, or refused by name: nothing that changes the arithmetic is passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.layers.rope import RopeScaling
from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights
from actors.models.config import ModelConfig
from actors.models.registry import FAMILIES
from actors.text.tokenizer import load_tokenizer
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import METADATA, random_tensors, tensor_shapes, write_gguf
from tests.actors.text.tiny_tokenizer import byte_level_metadata

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture
def changed(golden: Path, tmp_path: Path):
    """Reads a golden model whose config.json has other keys and whose weights are others."""

    def read(name: str, keys: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> ModelConfig:
        folder = shutil.copytree(golden / name, tmp_path / "m", dirs_exist_ok=True)
        raw = json.loads((folder / "config.json").read_text()) | keys
        (folder / "config.json").write_text(json.dumps(raw))
        if tensors is not None:
            file = folder / "model.safetensors"
            save_file(load_file(file) | tensors, file)
        source = resolve_model(str(folder))
        config = load_model_config(source)
        list(iter_weights(source, config))
        return config

    return read


def read_gguf_with(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> ModelConfig:
    file = write_gguf(path, random_tensors(tensor_shapes()) | (tensors or {}), metadata=METADATA | metadata)
    source = resolve_model(str(file))
    config = load_model_config(source)
    list(iter_weights(source, config))
    return config


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_rope_scaling_beside_rope_parameters_wins(changed, kind: str):
    scaling = {kind: "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = changed(
        "llama_tied", {"rope_scaling": scaling, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}
    )
    assert (config.rope_scaling.kind, config.rope_scaling.factor, config.rope_theta) == ("yarn", 4.0, 7e4)
    assert changed("llama_tied", {"rope_scaling": None, "rope_parameters": YARN}).rope_scaling.kind == "yarn"


def test_scaling_beside_another_that_is_not_known_is_refused_and_what_names_no_kind_adds_to_it(changed):
    for scaling in ({"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}):
        with pytest.raises(ModelLoadError, match="'longrope' is not supported"):
            changed("llama_tied", {"rope_scaling": scaling, "rope_parameters": {"rope_type": "longrope"}})
    config = changed("llama_tied", {"rope_scaling": {"rope_theta": 7e4}, "rope_parameters": YARN})
    assert (config.rope_scaling.kind, config.rope_theta) == ("yarn", 7e4)


def test_dynamic_scaling_ends_the_context_at_the_original_one(changed):
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}
    assert changed("llama_tied", {"rope_scaling": dynamic}).max_position_embeddings == 64


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "'longrope' is not supported"),
        ({"rope_type": "mrope", "mrope_section": [1, 2]}, "'mrope' is not supported"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "mrope_section = "),
        ({"rope_type": "dynamic", "factor": 4.0, "alpha": 1000.0}, "alpha = 1000.0"),
        ({"factor": 4.0}, "factor = 4.0"),
        ({"rope_type": "default", "type": "yarn", "factor": 4.0}, "types default, yarn at once"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention = "),
    ],
)
def test_scaling_that_is_not_supported_is_refused_in_either_place(changed, place: str, rope: dict, message: str):
    with pytest.raises(ModelLoadError, match=message):
        changed("llama_tied", {place: rope})


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"embedding_multiplier": 12.0},
        {"attention_multiplier": 0.1},
        {"logits_scaling": 8.0},
        {"scale_emb": 12},
        {"qk_norm": True},
        {"use_qk_norm": True},
        {"clip_qkv": 8.0},
        {"num_local_experts": 8},
        {"hidden_activation": "gelu"},
        {"hidden_act": "gelu"},
        {"use_rmsnorm": False},
        {"normalization": "layernorm"},
        {"is_causal": False},
        {"compression_ratio": 2.0},
        {"rotary_pct": 0.25},
        {"position_embedding_type": "alibi"},
        {"use_rope": False},
        {"dual_chunk_attention_config": {"chunk_size": 262144}},
        {"scale_attn_by_inverse_layer_idx": True},
        {"attention_scale": 0.5},
        {"embed_scale": 2.0},
        {"residual_scale": 0.2},
        {"sliding_window_size": 128},
        {"sliding_window_pattern": 6},
        {"rope_interleaved": True},
        {"norm_type": "layernorm"},
        {"activation": "gelu"},
        {"act_fn": "relu"},
        {"zero_centered_gamma": True},
        {"layer_types": ["full_attention", "chunked_attention"]},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_a_key_that_changes_the_arithmetic_is_refused_by_name(changed, keys: dict[str, Any]):
    with pytest.raises(ModelLoadError, match="|".join(keys)):
        changed("llama_tied", keys)
    neutral = {
        "use_rmsnorm": True,
        "position_embedding_type": "rope",
        "use_rope": True,
        "norm_type": "rmsnorm",
        "activation": "silu",
        "is_causal": True,
        "normalization": "rmsnorm",
        "compression_ratio": 1.0,
        "attn_logit_softcapping": None,
        "hidden_activation": "silu",
    }
    assert changed("llama_tied", {key: neutral.get(key) for key in keys})


@pytest.mark.parametrize("name", ["llama_tied", "granite", "ernie4_5", "qwen2", "qwen3"])
def test_context_ends_at_a_window(changed, name: str):
    switch = {"use_sliding_window": True} if FAMILIES[name.removesuffix("_tied")].sliding_window == "if used" else {}
    assert changed(name, {"sliding_window": 100, **switch}).max_position_embeddings == 100
    off = {"sliding_window": 100, "use_sliding_window": False}
    assert changed(name, off).max_position_embeddings == 256
    layers = {"layer_types": ["full_attention", "sliding_attention"]}
    assert changed(name, off | layers).max_position_embeddings == 100


def test_a_window_is_refused_where_it_makes_another_model(changed):
    with pytest.raises(ModelLoadError, match="sliding_window is 100, a variant of olmo2"):
        changed("olmo2", {"sliding_window": 100})


def test_other_keys_are_listed_in_one_line_of_the_log(changed, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "bireme.model_files")
    changed("llama_tied", {"my_note": 3, "another": None})
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "keys that nothing reads: my_note, another"
    ]


ONE = np.ones(32, np.float32)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.o_proj.bias", ONE),
        ("model.layers.1.self_attn.q_norm.weight", ONE),
        ("model.layers.1.mlp.down_proj.weight_scale", ONE),
        ("model.layers.2.input_layernorm.weight", ONE),
        ("lm_head.bias", ONE),
        ("model.embed_norm.weight", ONE),
    ],
)
def test_a_tensor_without_a_use_is_refused_by_name(changed, name: str, tensor: np.ndarray):
    with pytest.raises(ModelLoadError, match=f"tensor {name}: the configuration has no use for it"):
        changed("llama_tied", {}, {name: tensor})


def test_tensors_that_change_nothing_are_listed(changed, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "bireme.model_files")
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": ONE, "lm_head.weight": ONE, "mtp.0.norm.weight": ONE}
    changed("llama_tied", {}, table | {"model.layers.0.self_attn.o_proj.bias": 0 * ONE})
    assert caplog.records[-1].getMessage().endswith(f"tensors that nothing reads: {', '.join(sorted(table))}")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 1.0}, RopeScaling()),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 1.0}, RopeScaling()),
        (
            {"rope.scale_linear": 4.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            RopeScaling("linear", 4.0),
        ),
    ],
)
def test_old_keys_of_gguf_files(tmp_path: Path, metadata: dict[str, Any], expected: RopeScaling):
    assert read_gguf_with(tmp_path / "m.gguf", metadata).rope_scaling == expected


def test_attn_factor_of_a_gguf_file_multiplies_what_yarn_has(tmp_path: Path):
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    own = read_gguf_with(tmp_path / "a.gguf", yarn).rope_scaling.attention_factor
    assert own == pytest.approx(1 + 0.1 * np.log(4))
    assert (
        read_gguf_with(tmp_path / "b.gguf", yarn | {"rope.scaling.attn_factor": 1.0}).rope_scaling.attention_factor
        == own
    )
    twice = read_gguf_with(tmp_path / "c.gguf", yarn | {"rope.scaling.attn_factor": 2.0})
    assert twice.rope_scaling.attention_factor == 2 * own


def test_context_of_a_gguf_file_ends_at_a_window(tmp_path: Path):
    assert read_gguf_with(tmp_path / "m.gguf", {"attention.sliding_window": 50}).max_position_embeddings == 50


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"rope.scaling.factor": 4.0}, {}, "factor = 4.0"),
        ({"rope.scale_linear": 4.0, "rope.scaling.type": "yarn"}, {}, "llama.rope.scale_linear is 4.0 beside"),
        ({"rope.scaling.attn_factor": 2.0}, {}, "llama.rope.scaling.attn_factor is 2.0"),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            {"rope_freqs.weight": ONE[:8]},
            "rope_freqs.weight",
        ),
        ({"rope.dimension_sections": [1, 2]}, {}, "llama.rope.dimension_sections is"),
        ({"attention.value_length": 32}, {}, "llama.attention.value_length differs"),
        ({"attention.clamp_kqv": 8.0}, {}, "llama.attention.clamp_kqv is 8.0"),
        ({"attention.causal": False}, {}, "llama.attention.causal is False"),
        ({"attention.scale": 0.5}, {}, "llama.attention.scale is 0.5"),
        ({"logit_scale": 0.5}, {}, "llama.logit_scale is 0.5"),
        ({"final_logit_softcapping": 30.0}, {}, "llama.final_logit_softcapping is 30.0"),
        ({"nextn_predict_layers": 1}, {}, "llama.nextn_predict_layers is 1"),
        ({}, {"blk.0.attn_output_norm.weight": ONE}, "tensor blk.0.attn_output_norm.weight"),
        ({}, {"blk.0.attn_q.scale": ONE}, "tensor blk.0.attn_q.scale"),
        ({}, {"blk.0.ffn_down.bias": ONE}, "tensor blk.0.ffn_down.bias"),
        ({}, {"blk.1.attn_norm.weight": ONE}, "tensor blk.1.attn_norm.weight"),
        ({}, {"output.bias": ONE}, "tensor output.bias"),
    ],
)
def test_what_changes_the_arithmetic_in_a_gguf_file_is_refused_by_name(tmp_path: Path, metadata, tensors, message: str):
    with pytest.raises(ModelLoadError, match=message):
        read_gguf_with(tmp_path / "m.gguf", metadata, tensors)


@pytest.mark.parametrize(
    ("arch", "mark", "like"), [("llama", "<|begin_of_text|>", "llama-bpe"), ("qwen2", "<|im_start|>", "qwen2")]
)
def test_gguf_files_from_before_splitting_was_named(tmp_path: Path, arch: str, mark: str, like: str):
    """Two families are known by their tokens; nobody else's text is split by a guess."""

    def encoded(name: str, pre: str | None, token: str) -> list[int]:
        extra = byte_level_metadata(pre or "")
        extra["tokenizer.ggml.tokens"] = [token if t == "<s>" else t for t in extra["tokenizer.ggml.tokens"]]
        if pre is None:
            del extra["tokenizer.ggml.pre"]
        metadata = METADATA | {"vocab_size": 32}
        file = write_gguf(tmp_path / name, random_tensors(tensor_shapes()), arch=arch, metadata=metadata, extra=extra)
        return load_tokenizer(resolve_model(str(file))).encode("hello 12345")

    assert encoded("a.gguf", None, mark) == encoded("b.gguf", like, mark) != encoded("c.gguf", "gpt-2", mark)
    with pytest.raises(ModelLoadError, match=r"lacks tokenizer\.ggml\.pre"):
        encoded("d.gguf", None, "<s>")
