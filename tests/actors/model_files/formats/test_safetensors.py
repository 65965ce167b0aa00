"""The reader of safetensors files, whole and damaged."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.model_files.formats.safetensors import read_header
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import random_tensors
from tests.actors.model_files.test_weights import load


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_safetensors_reader_agrees_with_the_library(tmp_path: Path, dtype):
    tensors = {name: t.astype(dtype) for name, t in random_tensors({"a": (3, 5), "b": (7,), "scalar": ()}).items()}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "np"})
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        np.testing.assert_array_equal(read_header(tmp_path / "m.safetensors")[name].read(), tensor.astype(np.float32))


def test_bfloat16_is_widened_exactly(golden: Path):
    _, _, weights = load(golden / "qwen2")
    bits = weights["model.embed_tokens.weight"].view(np.uint32)
    assert not np.any(bits & 0xFFFF)
    assert np.any(bits)


def test_unsupported_dtype_is_named(golden: Path, tmp_path: Path):
    folder = shutil.copytree(golden / "qwen3", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight has dtype I8; supported: F32, F16, BF16"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 20, 1000, -1])
def test_cut_off_safetensors_file_is_refused(golden: Path, tmp_path: Path, keep: int):
    folder = shutil.copytree(golden / "qwen3", tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelLoadError, match="damaged or cut off"):
        load(folder)


@pytest.mark.parametrize(
    "header", [{"a": 1}, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, [], {"a": {}}]
)
def test_nonsense_safetensors_header_is_refused(tmp_path: Path, header):
    text = json.dumps(header).encode()
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ModelLoadError, match="damaged or cut off"):
        read_header(tmp_path / "m")
