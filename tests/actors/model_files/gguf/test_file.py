"""Headers of GGUF files, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from actors.model_files.gguf.file import read_gguf
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import random_tensors, tensor_shapes, write_gguf
from tests.actors.model_files.test_weights import load


def test_gguf_cut_off_anywhere_is_refused(tmp_path: Path):
    whole = write_gguf(tmp_path / "m.gguf", random_tensors(tensor_shapes())).read_bytes()
    for keep in (*range(0, 400, 7), len(whole) // 2, len(whole) - 64):
        file = tmp_path / f"cut-{keep}.gguf"
        file.write_bytes(whole[:keep])
        with pytest.raises(ModelLoadError, match=r"damaged or cut off|not a GGUF file"):
            read_gguf(file)


def test_gguf_with_flipped_header_bytes_never_crashes(tmp_path: Path):
    whole = bytearray(write_gguf(tmp_path / "m.gguf", random_tensors(tensor_shapes())).read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(200):
        damaged = bytearray(whole)
        damaged[int(rng.integers(4, 900))] ^= int(rng.integers(1, 256))
        file = tmp_path / f"flipped-{trial}.gguf"
        file.write_bytes(damaged)
        try:
            load(file)
        except ModelLoadError:
            refused += 1
        file.unlink()
    assert refused > 20


def test_gguf_type_that_cannot_be_read_is_named(tmp_path: Path):
    kind = gguf.GGMLQuantizationType.IQ4_XS
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", np.zeros((1, block_bytes), np.uint8), raw_dtype=kind)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(ModelLoadError, match=r"tensor t has ggml type IQ4_XS.*supported: F32"):
        read_gguf(tmp_path / "m.gguf")


def test_header_parser_agrees_with_the_gguf_package(tmp_path: Path):
    extra = {"a.list": [1, 2, 3], "a.text": "höhe", "a.words": ["x", "", "yz"], "a.flag": True, "a.number": 0.5}
    path = write_gguf(tmp_path / "m.gguf", random_tensors(tensor_shapes()), qtype="Q8_0", extra=extra)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents(), name
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert (entry.offset, entry.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
