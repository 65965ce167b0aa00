"""A start from kept weights: the files are not read again, and no token changes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from actors.device import large_copies
from actors.device.cpu import CpuDevice
from actors.device.large_copies import Upload
from actors.engine import kept_weights, load_weights, prepared
from actors.engine.prepared import prepare
from actors.engine.starting import start_engine
from actors.engine_actor import RunnerActor
from actors.model_files import ready_weights
from actors.model_files.config import load_model_config
from actors.model_files.source import model_of
from actors.model_files.weights import iter_weights
from actors.models.decoder import Decoder
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError
from gpu_ops import forward
from tests.engines import request, tokens_of, write_quantised_model
from tests.waiting import until


class HostAsGpu(CpuDevice):
    """Holds weights as a GPU does, in the host's memory."""

    is_gpu = True
    item_bytes = 2

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIREME_ONLY_USER", "1")
    monkeypatch.setattr(ready_weights, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(ready_weights, "MIN_BYTES", 0)
    monkeypatch.setattr(kept_weights, "PAUSE_S", 0)
    return tmp_path / "ready_weights"


def wait_until_kept() -> None:
    for thread in threading.enumerate():
        if thread.name in ("ready-weights", "weights-check"):
            thread.join()


def raises(error: BaseException) -> None:
    raise error


def unreadable(*arguments):
    raise AssertionError("weights are read again")


@pytest.mark.parametrize("weight_format", ["float32", "stored"])
def test_the_second_start_reads_no_weights_and_answers_the_same(
    golden: Path, folder: Path, tmp_path: Path, monkeypatch, weight_format: str
):
    stored = weight_format == "stored"
    model = write_quantised_model(tmp_path) if stored else golden / "ernie4_5"
    config = EngineConfig(model=str(model), num_kv_blocks=16, max_model_len=64, weight_format=weight_format)

    def answer(settings: EngineConfig) -> list[int]:
        engine = start_engine(settings, "engine")
        wait_until_kept()
        try:
            return tokens_of(engine.generate([request("a", [1, 2, 3], max_tokens=8, ignore_eos=True)])["a"])
        finally:
            engine.close()

    first = answer(config)
    (kept,) = folder.iterdir()

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
        if stored:
            with pytest.raises(AssertionError):
                answer(config.model_copy(update={"weight_format": "float32"}))
        kept.write_bytes(kept.read_bytes()[:-1])
        with pytest.raises(AssertionError):
            answer(config)
    assert answer(config) == first
    if stored:
        answer(config.model_copy(update={"weight_format": "float32"}))
        assert len(list(folder.iterdir())) == 2, "either is kept beside the other"


def test_a_prepared_model_is_not_used_where_the_files_have_changed_since(golden, folder, tmp_path, monkeypatch):
    model = Path(shutil.copytree(golden / "qwen2", tmp_path / "model"))
    config = EngineConfig(model=str(model), num_kv_blocks=16, max_model_len=64)
    engine = start_engine(config, "engine")
    wait_until_kept()
    engine.close()
    prepare(config, on_gpu=False)
    assert prepared._model is not None
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(load_weights, "load_model", unreadable)
    with pytest.raises(AssertionError):
        start_engine(config, "engine")


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5000] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_flipped_byte_is_noticed_and_the_file_made_again(golden, folder, monkeypatch, caplog, is_large: bool):
    if is_large:
        monkeypatch.setattr(kept_weights, "CHECKED_FIRST_BYTES", 0)
        monkeypatch.setattr(load_weights, "CHECKED_FIRST_BYTES", 0)
    config = EngineConfig(model=str(golden / "ernie4_5"), num_kv_blocks=16, max_model_len=64)
    failures: list[BaseException] = []

    def answer() -> list[int]:
        when_ready: list[kept_weights.WhenReady] = []
        engine = start_engine(config, "engine", when_ready=when_ready)
        for begin in when_ready:
            begin(failures.append)
        wait_until_kept()
        try:
            return tokens_of(engine.generate([request("a", [1, 2, 3], max_tokens=8, ignore_eos=True)])["a"])
        finally:
            engine.close()

    first = answer()
    (kept,) = folder.iterdir()
    sound = kept.read_bytes()
    assert answer() == first and not failures
    flip_a_byte(kept)
    if is_large:
        # A spare has the time to look first.
        prepare(config, on_gpu=False)
        assert prepared._model is None and not kept.exists()
        kept.write_bytes(sound)
        flip_a_byte(kept)
        answer()  # whatever it says: the engine ends
        (error,) = failures
        assert str(kept) in str(error) and isinstance(error, EngineDeadError)
        assert not kept.exists()
    assert answer() == first
    assert kept.read_bytes() == sound
    assert "kept_weights_damaged" in caplog.text
    assert len(failures) == is_large


async def test_damage_found_at_the_first_moment_ends_the_engine(golden, folder, monkeypatch):
    """Before anybody could have sent it a request: neither its start nor its health hides that."""
    config = EngineConfig(model=str(golden / "ernie4_5"), num_kv_blocks=16, max_model_len=64)
    first = start_engine(config, "engine")
    wait_until_kept()
    first.close()
    monkeypatch.setattr(load_weights, "CHECKED_FIRST_BYTES", 0)
    damaged = EngineDeadError("its kept weights are damaged")
    monkeypatch.setattr(load_weights, "check_later", lambda file: lambda fail: fail(damaged))
    actor = RunnerActor(config, "engine")
    await actor.start()
    await until(lambda: actor.serving.engine_loop.error is not None, 10)
    with pytest.raises(EngineDeadError, match="damaged"):
        await actor.check_health()
    await actor.shutdown()


def test_a_process_prepares_itself_where_the_model_is_yet_to_come(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prepare(EngineConfig(model="owner/elsewhere"), on_gpu=False)
    prepare(EngineConfig(model="owner/elsewhere"), on_gpu=True)
    assert prepared._model is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_a_gpus_weights_come_back_from_their_file_bit_by_bit(
    golden: Path, folder: Path, monkeypatch, dtype: str, load_format: str
):
    monkeypatch.setattr(forward, "pack_weight", lambda weight: weight)
    monkeypatch.setattr(large_copies, "_PIECE_BYTES", 4098)
    monkeypatch.setattr(large_copies, "_FETCHED_BYTES", 1026)
    config = EngineConfig(model=str(golden / "qwen2"), load_format=load_format)
    source, when_ready = model_of(config), []

    def load(**settings) -> Decoder:
        device = HostAsGpu(dtype)
        settings = config.model_copy(update=settings)
        return load_weights.load_weights(settings, source, load_model_config(source), 64, None, device, when_ready)

    first = load()
    arrays = dict(iter_weights(source, load_model_config(source), dtype))
    parts = [arrays[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert first.layers[1].attention.qkv.weight.packed.numpy().tobytes() == np.concatenate(parts).tobytes()
    when_ready.pop()(raises)
    wait_until_kept()
    (kept,) = folder.iterdir()
    assert kept.stat().st_size < sum(t.numpy().nbytes for t in first.ready_tensors().values()) + 4096 * 99
    with monkeypatch.context() as patch:
        patch.setattr(load_weights, "load_model", unreadable)
        again = load()
        with pytest.raises(AssertionError):
            load(ready_weights_gb=0)
        patch.setattr(HostAsGpu, "is_gpu", False)
        with pytest.raises(AssertionError):
            load()  # a file in the GPU's layout is none for the CPU
    assert again.ready_tensors().keys() == first.ready_tensors().keys()
    for name, tensor in first.ready_tensors().items():
        found = again.ready_tensors()[name]
        assert found.dtype == tensor.dtype and found.data_ptr() != tensor.data_ptr()
        assert found.numpy().tobytes() == tensor.numpy().tobytes(), name
    weights = [layer.mlp.down.weight for model in (first, again) for layer in model.layers[:1]]
    assert weights[0].num_bytes == weights[1].num_bytes > 0
    prefetched: list[ready_weights.ReadyFile] = []
    monkeypatch.setattr(ready_weights.ReadyFile, "prefetch", lambda file: prefetched.append(file))
    prepare(config.model_copy(update={"dtype": dtype}), on_gpu=True)
    assert [file.path for file in prefetched] == [kept]
    assert not when_ready, "a model that came from the file is not written again"

    def gone(*arguments):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(kept_weights.os, "preadv", gone)
        found = load().ready_tensors()["final_norm"]
    assert found.numpy().tobytes() == first.ready_tensors()["final_norm"].numpy().tobytes(), "read anew"


def test_weights_are_not_written_for_an_engine_that_is_gone(golden: Path, folder: Path):
    config = EngineConfig(model=str(golden / "qwen2"))
    source, when_ready = model_of(config), []
    load_weights.load_weights(config, source, load_model_config(source), 64, None, CpuDevice(), when_ready)
    when_ready.pop()(raises)
    wait_until_kept()
    assert list(folder.iterdir()) == []


def test_what_a_reader_raises_ends_an_upload(monkeypatch):
    device = CpuDevice()
    monkeypatch.setattr(large_copies, "_PIECE_BYTES", 64)
    tensor = device.empty([1000])

    def read(offset: int, into: np.ndarray) -> None:
        if offset >= 1024:
            raise OSError("no more")
        into[:] = 1

    with Upload(device) as upload:
        upload.fill(tensor, read, end=1024)
        upload.finish()
        assert (tensor.numpy()[:256].view(np.uint8) == 1).all()
        with pytest.raises(OSError, match="no more"):  # noqa: PT012
            upload.fill(tensor, read)
            upload.finish()
