"""Tensors of GGUF files: every type, block by block."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from actors.model_files.gguf.file import TENSOR_TYPES, read_gguf
from actors.model_files.gguf.tensors import read_tensor
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import random_tensors, tensor_shapes, write_gguf
from tests.actors.model_files.test_weights import load


@pytest.mark.parametrize("qtype", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_types_are_close_to_what_was_stored(tmp_path: Path, qtype: str):
    tensors = random_tensors({"token_embd.weight": (256, 128), "one_row.weight": (1, 64), "vector": (33,)})
    file = read_gguf(write_gguf(tmp_path / "m.gguf", tensors, qtype=qtype))
    kind = gguf.GGMLQuantizationType[qtype]
    for name, values in tensors.items():
        read = read_tensor(file.tensors[name])
        assert read.dtype == np.float32
        assert read.shape == values.shape
        stored = dequantize(quantize(values, kind), kind) if values.ndim > 1 else values
        np.testing.assert_array_equal(read, stored.reshape(values.shape))
        assert np.abs(read - values).max() < (0.0 if qtype == "F32" else 0.6) + 1e-9


@pytest.mark.parametrize("qtype", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read_from_their_blocks(tmp_path: Path, qtype: str):
    kind = gguf.GGMLQuantizationType[qtype]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert TENSOR_TYPES[int(kind)] == (qtype, block, block_bytes)
    raw = np.random.default_rng(0).integers(0, 64, (5, 2 * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=kind)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    file = read_gguf(tmp_path / "m.gguf")
    assert file.tensors["t"].shape == (5, 2 * block)
    np.testing.assert_array_equal(read_tensor(file.tensors["t"]), dequantize(raw, kind))


def test_large_tensors_are_unpacked_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("actors.model_files.gguf.tensors._SLICE_BYTES", 4 * 32 * 3)
    tensors = random_tensors({"t": (10, 128)})
    file = read_gguf(write_gguf(tmp_path / "m.gguf", tensors, qtype="Q8_0"))
    kind = gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(read_tensor(file.tensors["t"]), dequantize(quantize(tensors["t"], kind), kind))


def test_all_supported_types_have_the_sizes_that_gguf_gives_them():
    for type_id, (name, block, block_bytes) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(type_id)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, block_bytes))


def test_missing_gguf_tensor_is_named(tmp_path: Path):
    tensors = random_tensors(tensor_shapes())
    del tensors["blk.0.ffn_up.weight"]
    with pytest.raises(ModelLoadError, match=r"no tensor blk\.0\.ffn_up\.weight"):
        load(write_gguf(tmp_path / "m.gguf", tensors))
