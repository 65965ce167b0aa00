"""A start from kept weights: the files are not read again, and no token changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from actors.engine import load_weights
from actors.engine.loading import load_engine
from actors.engine.prepared import prepare
from actors.model_files import ready_weights
from cluster.config import EngineConfig
from tests.engines import request, tokens_of


def test_the_second_start_reads_no_weights_and_answers_the_same(golden: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("BIREME_ONLY_USER", "1")
    monkeypatch.setattr(ready_weights, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(ready_weights, "MIN_BYTES", 0)
    model = min(path for path in golden.iterdir() if (path / "config.json").is_file())
    config = EngineConfig(model=str(model), num_kv_blocks=16, max_model_len=64)

    def answer(settings: EngineConfig) -> list[int]:
        engine = load_engine(settings)
        for thread in threading.enumerate():
            if thread.name == "ready-weights":
                thread.join()
        try:
            return tokens_of(engine.generate([request("a", [1, 2, 3], max_tokens=8, ignore_eos=True)])["a"])
        finally:
            engine.close()

    first = answer(config)
    (kept,) = (tmp_path / "ready_weights").iterdir()

    def unreadable(*arguments):
        raise AssertionError("weights are read again")

    with monkeypatch.context() as patch:
        patch.setattr(load_weights, "load_model", unreadable)
        assert answer(config) == first
        prepare(config, on_gpu=False)
        with monkeypatch.context() as deeper:
            deeper.setattr(load_weights, "load_kept_weights", unreadable)
            assert answer(config) == first, "a process that was prepared has its weights"
            with pytest.raises(AssertionError):
                answer(config)
            deeper.undo()
            prepare(config, on_gpu=False)
            deeper.setattr(load_weights, "load_kept_weights", unreadable)
            with pytest.raises(AssertionError):
                answer(config.model_copy(update={"max_num_seqs": 3}))
        with pytest.raises(AssertionError):
            answer(config.model_copy(update={"ready_weights_gb": 0}))
        kept.write_bytes(kept.read_bytes()[:-1])
        with pytest.raises(AssertionError):
            answer(config)
    assert answer(config) == first
