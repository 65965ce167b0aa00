"""Models that the GPU kernels do not compute are refused by name before their weights are read."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from actors.device.cpu import CpuDevice
from actors.engine import loading
from actors.engine.loading import load_engine
from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from actors.models.config import ModelConfig
from actors.models.decoder import Decoder
from actors.models.gpu_limits import check_gpu_model
from cluster.config import EngineConfig
from cluster.errors import ConfigError
from tests.engines import TINY_CONFIG, write_tiny_model

GPU_SIZES = {"head_dim": 64, "hidden_size": 128, "num_attention_heads": 10, "num_key_value_heads": 2}


@pytest.fixture
def model(tmp_path) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG | GPU_SIZES))
    return load_model_config(resolve_model(str(tmp_path), load_format="dummy"))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("heads", [(10, 2), (16, 1), (9, 3), (4, 4)])
def test_what_the_kernels_compute_is_taken(model, head_dim, heads):
    check_gpu_model(dataclasses.replace(model, head_dim=head_dim, num_heads=heads[0], num_kv_heads=heads[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 16}, "head_dim is 16; on a GPU the ops need 64, 80, 96 or 128"),
        ({"head_dim": 256}, "head_dim is 256"),
        ({"num_heads": 17, "num_kv_heads": 1}, "17 query heads share a key head; on a GPU the ops need at most 16"),
        ({"hidden_size": 132}, "hidden_size is 132; on a GPU the ops need a multiple of 8"),
        ({"intermediate_size": 99}, "intermediate_size is 99"),
    ],
)
def test_what_they_do_not_compute_is_refused_by_name(model, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_gpu_model(dataclasses.replace(model, **change))
    assert caught.value.param == "model"
    assert "device: cpu" in caught.value.message


def test_an_engine_on_a_gpu_refuses_before_it_reads_weights(tmp_path, monkeypatch):
    class Gpu(CpuDevice):
        is_gpu = True

    monkeypatch.setattr(loading, "choose_device", lambda config: Gpu())
    with pytest.raises(ConfigError, match="head_dim is 16"):
        load_engine(EngineConfig(model=str(write_tiny_model(tmp_path)), load_format="dummy", device="gpu"))


@pytest.mark.parametrize(
    ("layers", "layer_bytes", "rows"),
    [(30, 7 << 20, (2048, 20_000)), (16, 121 << 20, (256, 1024)), (32, 416 << 20, (0, 0))],
    ids=["135M", "1B", "8B"],
)
def test_steps_are_bound_by_launches_where_a_model_is_small(layers, layer_bytes, rows):
    linear = SimpleNamespace(weight=SimpleNamespace(num_bytes=layer_bytes))
    model = SimpleNamespace(layers=[SimpleNamespace(linears=(linear,))] * layers)
    least, most = rows
    assert least <= Decoder.max_launch_bound_rows.func(model) <= most
