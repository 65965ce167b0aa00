"""The decoder's GPU paths with NumPy twins in place of the ops: the same logits, and one order of ops."""

from __future__ import annotations

import numpy as np
import pytest

from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights
from actors.models.decoder import Decoder
from tests.actors.layers.transposed_weight import TransposedWeight
from tests.actors.models.test_models import GOLDEN, all_logits, load
from tests.actors.models.twin_gpu import TwinGpu, install

NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
# A prompt, decoding rows, and a prompt's end.
CHUNKS = [20, 1, 1, 26]


def load_on_gpu(name: str, batch_invariant: bool = False) -> Decoder:
    source = resolve_model(str(GOLDEN / name))
    config, device = load_model_config(source), TwinGpu()
    device.batch_invariant = batch_invariant
    model = Decoder(config, 128, device)
    model.load_weights(iter_weights(source, config))
    return model


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_logits_on_the_gpu_paths_match_transformers(monkeypatch, name, batch_invariant):
    calls = install(monkeypatch)
    reference = np.load(GOLDEN / name / "logits.npz")
    logits = all_logits(load_on_gpu(name, batch_invariant), reference["token_ids"], CHUNKS)
    assert np.abs(logits - reference["logits"]).max() < 1e-4
    has_small_batch = "olmo2" not in name and not batch_invariant
    assert any(op == "small_batch_linear" for op, _ in calls) == has_small_batch


def test_a_small_batch_takes_five_kernels_a_layer(monkeypatch):
    calls = install(monkeypatch)
    model = load_on_gpu("llama_bias")
    all_logits(model, np.arange(1), [1])
    layer = [
        "small_batch_linear",
        "decode_attention",
        "add_small_batch_linear",
        "small_batch_linear",
        "add_small_batch_linear",
    ]
    assert [op for op, _ in calls] == ["embedding", *layer, *layer, "rms_norm", "linear"]


@pytest.mark.parametrize("name", ["qwen3", "llama_bias", "granite"])
def test_a_prompt_takes_one_op_for_all_layers(monkeypatch, name):
    calls = install(monkeypatch)
    model = load_on_gpu(name)
    fused = all_logits(model, np.arange(9), [3, 6])
    assert [op for op, _ in calls] == ["embedding", "fused_layers", "linear"] * 2
    assert (all_logits(model, np.arange(9), [3, 6], Decoder.forward_op_by_op) == fused).all()


def test_a_prompt_takes_a_norm_with_each_residual_addition(monkeypatch):
    calls = install(monkeypatch)
    model = load_on_gpu("qwen3")
    all_logits(model, np.arange(3), [3], Decoder.forward_op_by_op)
    attention = ["linear", "qk_norm", "rotary_kv_write", "paged_attention", "linear", "add_rms_norm"]
    layer = [*attention, "linear", "swiglu", "linear", "add_rms_norm"]
    assert [op for op, _ in calls] == ["embedding", "rms_norm", *layer, *layer, "linear"]


def test_a_layer_with_norms_behind_its_blocks_adds_them_in_place(monkeypatch):
    calls = install(monkeypatch)
    model = load_on_gpu("olmo2")
    all_logits(model, np.arange(3), [3])
    attention = ["linear", "projection_norm", "rotary_kv_write", "paged_attention", "linear", "rms_norm_add"]
    layer = [*attention, "linear", "swiglu", "linear", "rms_norm_add"]
    assert [op for op, _ in calls] == ["embedding", *layer, *layer, "rms_norm", "linear"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_kind_of_weight_decides_which_op_runs(monkeypatch, on_gpu):
    """One layer with another kind, and the model goes op by op with the same result."""
    calls = install(monkeypatch) if on_gpu else []
    model = load_on_gpu("llama_bias") if on_gpu else load(GOLDEN / "llama_bias")
    source = resolve_model(str(GOLDEN / "llama_bias"))
    arrays = dict(iter_weights(source, model.config))
    for index, layer in enumerate(model.layers):
        layer.mlp.down.weight = TransposedWeight.store(
            model.device, [arrays[f"model.layers.{index}.mlp.down_proj.weight"]], model.device.joined
        )
    reference = np.load(GOLDEN / "llama_bias" / "logits.npz")
    logits = all_logits(model, reference["token_ids"], CHUNKS)
    assert np.abs(logits - reference["logits"]).max() < 1e-4
    assert model.max_small_batch == 0
    assert not any(op == "small_batch_linear" for op, _ in calls)
