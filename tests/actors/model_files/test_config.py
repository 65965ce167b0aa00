"""Configuration of every architecture from config.json and GGUF, rope scaling, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.layers.rope import RopeScaling
from actors.model_files.config import config_from_json, load_model_config
from actors.model_files.source import ModelSource
from actors.models.config import ModelConfig
from cluster.errors import ModelLoadError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}


def read(**changes: Any) -> ModelConfig:
    return config_from_json({**LLAMA, **changes}, "config.json").check("config.json")


def test_smollm2(smollm2_source: ModelSource):
    config = load_model_config(smollm2_source)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads) == (576, 30, 9, 3)
    assert (config.head_dim, config.vocab_size, config.max_position_embeddings) == (64, 49152, 8192)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 100_000.0)
    assert config.tie_word_embeddings


def test_missing_values_take_the_published_defaults():
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.rope_theta) == (4, 16, 10_000.0)
    assert not config.tie_word_embeddings
    assert config.rope_scaling == RopeScaling()
    ernie = read(model_type="ernie4_5", num_key_value_heads=2)
    assert (ernie.head_dim, ernie.rope_theta, ernie.tie_word_embeddings) == (128, 500_000.0, True)


@pytest.mark.parametrize(
    ("arch", "extra", "biases", "qk_norm", "interleaved"),
    [
        ("llama", {}, (False, False, False), False, False),
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True), False, False),
        ("mistral", {"attention_bias": True}, (False, False, False), False, False),
        ("qwen2", {}, (True, False, False), False, False),
        ("qwen3", {}, (False, False, False), True, False),
        ("qwen3", {"attention_bias": True}, (True, True, False), True, False),
        ("ernie4_5", {}, (False, False, False), False, True),
        ("ernie4_5", {"use_bias": True}, (True, True, True), False, True),
    ],
)
def test_what_architectures_differ_in(arch, extra, biases, qk_norm, interleaved):
    config = read(model_type=arch, **extra)
    assert (config.attention_bias, config.attention_out_bias, config.mlp_bias) == biases
    assert (config.qk_norm, config.rope_interleaved) == (qk_norm, interleaved)


def test_context_ends_at_the_sliding_window():
    assert read(model_type="mistral", sliding_window=256).max_position_embeddings == 256
    assert read(model_type="mistral", sliding_window=None).max_position_embeddings == 1024
    assert read(model_type="qwen2", sliding_window=256, use_sliding_window=False).max_position_embeddings == 1024
    assert read(model_type="qwen2", sliding_window=256, use_sliding_window=True).max_position_embeddings == 256


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_rope_scaling_is_read_from_old_and_new_keys(key: str, kind_key: str):
    config = read(**{key: {kind_key: "linear", "factor": 4.0}})
    assert config.rope_scaling == RopeScaling("linear", 4.0)
    assert config.max_position_embeddings == 4096


def test_rope_theta_is_read_from_old_and_new_places():
    assert read(rope_theta=5e5).rope_theta == 5e5
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 7e5}).rope_theta == 7e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba' is not supported; supported: llama, mistral"),
        ({"model_type": None}, "architecture None"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"vocab_size": 0}, "vocab_size is 0, it must be an integer from 1 to"),
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_hidden_layers": "2"}, "num_layers is '2'"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "not a multiple of num_kv_heads"),
        ({"head_dim": 15}, "even number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config .gptq. is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope scaling 'longrope' is not supported; supported: default"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor = None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -2}}, "factor = -2"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor .1.0. must be above",
        ),
    ],
)
def test_unsupported_or_impossible_values_are_refused_by_name(changes, message):
    with pytest.raises(ModelLoadError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "no JSON object"), (None, "cannot read")]
)
def test_damaged_config_json(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        load_model_config(ModelSource("dummy", tmp_path, None, "m"))


def test_an_end_of_sequence_beyond_the_vocabulary_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 100}))
    with pytest.raises(ModelLoadError, match="eos_token_id 100 is not below vocab_size"):
        load_model_config(ModelSource("dummy", tmp_path, None, "m"))


@pytest.mark.parametrize("changes", [{"rms_norm_eps": "small"}, {"rope_scaling": 4}, {"rope_theta": [1]}])
def test_values_of_the_wrong_type_are_refused(tmp_path: Path, changes: dict[str, Any]):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    with pytest.raises(ModelLoadError, match=r"config.json holds a value of the wrong type"):
        load_model_config(ModelSource("dummy", tmp_path, None, "m"))
