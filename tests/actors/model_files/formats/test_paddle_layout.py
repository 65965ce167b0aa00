"""ERNIE in Paddle's own layout gives the bits of the torch layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.model_files.config import load_model_config
from actors.model_files.formats.number_types import convert
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights
from cluster.errors import ModelLoadError

Tensors = dict[str, np.ndarray]


def in_paddle_layout(tensors: Tensors) -> Tensors:
    """As the -Paddle repositories of ERNIE 4.5 have it: names, joined projections, and [in, out]."""
    joined: Tensors = {}
    for name, tensor in tensors.items():
        value = tensor.T if tensor.ndim == 2 and "embed_tokens" not in name else tensor
        joined[name.replace("model.", "ernie.", 1)] = np.ascontiguousarray(value)
    for name in [name for name in joined if ".q_proj." in name or ".gate_proj." in name]:
        parts = ("q_proj", "k_proj", "v_proj") if ".q_proj." in name else ("gate_proj", "up_proj")
        whole = "qkv_proj" if ".q_proj." in name else "up_gate_proj"
        members = [joined.pop(name.replace(parts[0], part)) for part in parts]
        joined[name.replace(parts[0], whole)] = np.concatenate(members, axis=-1)
    return joined


def turned(tensors: Tensors) -> Tensors:
    """Hugging Face's names, Paddle's orientation."""
    return {
        name: np.ascontiguousarray(tensor.T) if tensor.ndim == 2 and "embed" not in name else tensor
        for name, tensor in tensors.items()
    }


def write(golden: Path, folder: Path, change: Callable[[Tensors], Tensors], **keys) -> Path:
    folder.mkdir()
    raw = json.loads((golden / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    save_file(change(load_file(golden / "model.safetensors")), folder / "model.safetensors")
    return folder


def weights(folder: Path, dtype: str = "float32") -> Tensors:
    source = resolve_model(str(folder))
    return dict(iter_weights(source, load_model_config(source), dtype))


PADDLE_KEYS = {
    "model_type": "ernie",
    "architectures": ["Ernie4_5_ForCausalLM"],
    "transformers_version": None,
    "paddlenlp_version": "3.0",
    "use_rmsnorm": True,
    "compression_ratio": 1.0,
    "fuse_rope": True,
    "moe_num_experts": 0,
}


@pytest.mark.parametrize("name", ["ernie4_5", "ernie4_5_bias"])
@pytest.mark.parametrize("change", [in_paddle_layout, turned])
def test_the_bits_are_those_of_the_torch_layout(golden: Path, tmp_path: Path, name: str, change):
    folder = write(golden / name, tmp_path / "paddle", change, **PADDLE_KEYS)
    assert load_model_config(resolve_model(str(folder))) == load_model_config(resolve_model(str(golden / name)))
    expected, found = weights(golden / name), weights(folder)
    assert found.keys() == expected.keys()
    for tensor in expected:
        assert found[tensor].shape == expected[tensor].shape
        assert (found[tensor] == expected[tensor]).all(), tensor


def test_bfloat16_as_numpys_integers(golden: Path, tmp_path: Path):
    def as_integers(tensors: Tensors) -> Tensors:
        return {name: convert(tensor, "bfloat16") for name, tensor in in_paddle_layout(tensors).items()}

    folder = write(golden / "ernie4_5", tmp_path / "paddle", as_integers)
    expected, found = weights(golden / "ernie4_5", "bfloat16"), weights(folder, "bfloat16")
    assert all((found[name] == expected[name]).all() for name in expected)


def test_a_width_that_does_not_fit_and_a_tensor_without_a_use_are_refused(golden: Path, tmp_path: Path):
    def wider(tensors: Tensors) -> Tensors:
        laid = in_paddle_layout(tensors)
        name = "ernie.layers.0.self_attn.qkv_proj.weight"
        return laid | {name: np.concatenate([laid[name]] * 2, axis=-1)}

    with pytest.raises(ModelLoadError, match=r"v_proj.weight has shape \[\d+, 32\], the configuration wants"):
        weights(write(golden / "ernie4_5", tmp_path / "wide", wider))
    norm = {"ernie.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    with pytest.raises(ModelLoadError, match=r"tensor model\.layers\.0\.self_attn\.q_norm\.weight: the configuration"):
        weights(write(golden / "ernie4_5", tmp_path / "norm", lambda tensors: in_paddle_layout(tensors) | norm))


def test_experts_are_refused(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "ernie4_5", tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text()) | {"moe_num_experts": 64}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelLoadError, match="moe_num_experts is 64"):
        load_model_config(resolve_model(str(folder)))
    raw |= {"moe_num_experts": 0, "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelLoadError, match="architecture 'ernie4_5_moe' is not supported"):
        load_model_config(resolve_model(str(folder)))
