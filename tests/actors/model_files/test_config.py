"""Configuration of every architecture from config.json and GGUF, rope scaling, and refusals by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.layers.rope import RopeScaling, inverse_frequencies
from actors.model_files.config import config_from_json, load_model_config
from actors.model_files.rope_scaling import normalise_rope_scaling
from actors.model_files.source import ModelSource, resolve_model
from actors.models.config import ModelConfig
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import METADATA, random_tensors, tensor_shapes, write_gguf

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


def test_gguf_metadata(tmp_path: Path):
    shapes = {**tensor_shapes(), "output.weight": (32, 64), "blk.0.attn_q.bias": (64,)}
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0, "attention.key_length": 16}
    file = write_gguf(tmp_path / "m.gguf", random_tensors(shapes), arch="qwen2", metadata={**METADATA, **scaling})
    config = load_model_config(resolve_model(str(file)))
    assert (config.architecture, config.vocab_size, config.head_dim) == ("qwen2", 32, 16)
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.max_position_embeddings == 128
    assert not config.tie_word_embeddings
    assert config.attention_bias
    assert not config.rope_interleaved


def test_gguf_frequency_divisors(tmp_path: Path):
    divisors = np.array([1, 1, 2, 2, 4, 8, 8, 8], np.float32)
    tensors = {**random_tensors(tensor_shapes()), "rope_freqs.weight": divisors}
    config = load_model_config(resolve_model(str(write_gguf(tmp_path / "m.gguf", tensors))))
    plain = inverse_frequencies(10_000.0, 16, RopeScaling())
    np.testing.assert_allclose(inverse_frequencies(10_000.0, 16, config.rope_scaling), plain / divisors)


@pytest.mark.parametrize(
    ("arch", "metadata", "message"),
    [
        ("mamba", METADATA, "architecture 'mamba' is not supported"),
        (
            "llama",
            {k: v for k, v in METADATA.items() if k != "block_count"},
            "lacks the metadata key llama.block_count",
        ),
        ("llama", {**METADATA, "expert_count": 8}, "mixture of experts"),
        ("llama", {**METADATA, "rope.dimension_count": 8}, "rope.dimension_count differs"),
        ("llama", {**METADATA, "rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
    ],
)
def test_gguf_variants_that_are_refused(tmp_path: Path, arch: str, metadata: dict[str, Any], message: str):
    file = write_gguf(tmp_path / "m.gguf", random_tensors(tensor_shapes()), arch=arch, metadata=metadata)
    with pytest.raises(ModelLoadError, match=message):
        load_model_config(resolve_model(str(file)))


def test_rope_table_holds_cosines_then_sines():
    table = read().rope_table(20)
    assert table.shape == (20, 16)
    assert table.dtype == np.float32
    for position in (0, 1, 19):
        for pair in (0, 3, 7):
            angle = position * 10_000.0 ** (-2 * pair / 16)
            assert table[position, pair] == pytest.approx(math.cos(angle), abs=2e-6)
            assert table[position, 8 + pair] == pytest.approx(math.sin(angle), abs=2e-6)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    scaling = RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    plain, scaled = (inverse_frequencies(500_000.0, 128, s) for s in (RopeScaling(), scaling))
    waves = 2 * math.pi / plain
    np.testing.assert_allclose(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    np.testing.assert_allclose(scaled[waves > 8192], plain[waves > 8192] / 8)
    between = (waves > 8192 / 4) & (waves < 8192)
    assert np.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8))


def test_yarn_scales_the_table_by_its_attention_factor():
    scaling, context = normalise_rope_scaling(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, "x"
    )
    assert context == 131072
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    config = replace(read(), rope_scaling=scaling)
    assert config.rope_table(1)[0, 0] == pytest.approx(scaling.attention_factor)


def test_dynamic_scaling_is_none_within_the_original_context():
    assert normalise_rope_scaling({"type": "dynamic", "factor": 2.0}, 2048, "x") == (RopeScaling(), 2048)
