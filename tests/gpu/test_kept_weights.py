"""A GPU's weights as they come from the model's files, and from the file of ready weights: the same bits, beside steps."""

from __future__ import annotations

import threading

import pytest

from actors.device.gpu import GpuDevice
from actors.engine import kept_weights, load_weights
from actors.engine.starting import start_engine
from actors.model_files import ready_weights
from actors.model_files.config import load_model_config
from actors.model_files.source import model_of
from actors.model_files.weights import iter_weights
from cluster.config import EngineConfig
from tests.engines import request, tokens_of


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kept_weights_are_the_same_bits_and_tokens(tiny_gpu_model, tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("BIREME_ONLY_USER", "1")
    monkeypatch.setattr(ready_weights, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(ready_weights, "MIN_BYTES", 0)
    monkeypatch.setattr(kept_weights, "PAUSE_S", 0)
    settings = {"load_format": "dummy", "dtype": dtype, "device": "gpu", "num_kv_blocks": 64, "batch_invariant": True}
    config = EngineConfig(model=str(tiny_gpu_model), **settings)
    source = model_of(config)
    model_config = load_model_config(source)

    def answer() -> list[int]:
        engine = start_engine(config, "engine")  # its weights are written while it computes
        try:
            tokens = tokens_of(engine.generate([request("a", [1, 2, 3], max_tokens=64, ignore_eos=True)])["a"])
            for thread in threading.enumerate():
                if thread.name == "ready-weights":
                    thread.join()
            return tokens
        finally:
            engine.close()

    first = answer()
    assert len(list((tmp_path / "ready_weights").iterdir())) == 1
    kept = load_weights.load_kept_weights(config, source, model_config, 64, GpuDevice(dtype))
    assert kept is not None
    monkeypatch.setattr(load_weights, "ready_weights", lambda *arguments: None)
    read = load_weights.load_weights(config, source, model_config, 64, None, GpuDevice(dtype))
    arrays = dict(iter_weights(source, model_config, dtype))
    for name, tensor in read.ready_tensors().items():
        assert kept.ready_tensors()[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    for model in (kept, read):
        down = model.layers[1].mlp.down.weight.packed.numpy()
        assert down.tobytes() == arrays["model.layers.1.mlp.down_proj.weight"].tobytes()
    monkeypatch.undo()
    monkeypatch.setenv("BIREME_ONLY_USER", "1")
    monkeypatch.setattr(ready_weights, "cache_dir", lambda: tmp_path)

    def unreadable(*arguments):
        raise AssertionError("weights are read again")

    monkeypatch.setattr(load_weights, "load_model", unreadable)
    assert answer() == first
