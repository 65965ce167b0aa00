"""A split GGUF model is one model, whichever of its parts is named."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from actors.model_files.config import load_model_config
from actors.model_files.gguf.file import read_gguf
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights, weights_fingerprint
from actors.text.tokenizer import load_tokenizer
from cluster.errors import ModelLoadError
from tests.actors.model_files.gguf_writer import METADATA, random_tensors, tensor_shapes, write_gguf
from tests.actors.text.tiny_tokenizer import byte_level_metadata

TENSORS = random_tensors(tensor_shapes(300))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "split"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf", TENSORS, qtype="Q8_0", extra=byte_level_metadata("qwen2"), split=4)
    return sorted(folder.iterdir())


def weights(source) -> list[tuple[str, bytes]]:
    return [(name, tensor.tobytes()) for name, tensor in iter_weights(source, load_model_config(source))]


def test_any_part_names_the_whole_model(tmp_path: Path, parts: list[Path]):
    assert [part.name for part in parts] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = write_gguf(tmp_path / "tiny.gguf", TENSORS, qtype="Q8_0", extra=byte_level_metadata("qwen2"))
    expected = weights(resolve_model(str(whole)))
    for named in (*parts, parts[0].parent):
        source = resolve_model(str(named))
        assert (source.path, source.name, source.weight_files()) == (parts[0], "tiny", parts)
        assert weights(source) == expected
        assert load_tokenizer(source).encode("hello") == load_tokenizer(resolve_model(str(whole))).encode("hello")
        assert resolve_model(str(whole), tokenizer=str(parts[1])).tokenizer == parts[0]
    before = weights_fingerprint(resolve_model(str(parts[0])))
    data = parts[2].read_bytes()
    parts[2].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert weights_fingerprint(resolve_model(str(parts[0]))) != before


def test_missing_parts_are_named(parts: list[Path]):
    parts[1].unlink()
    for named in (parts[0], parts[2], parts[0].parent):
        with pytest.raises(ModelLoadError, match=r"lacks tiny-00002-of-00003\.gguf: all 3 parts"):
            resolve_model(str(named))


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, parts: list[Path]):
    middle = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ModelLoadError, match=r"00002-of-00003.gguf is no part 2 of 3"):
        read_gguf(parts[0])
    parts[1].write_bytes(middle)
    assert read_gguf(parts[2]).tensors.keys() == TENSORS.keys()
    with pytest.raises(ModelLoadError, match=r"is one of 3 parts: name them as they came, NAME-00001-of-00003"):
        load_model_config(resolve_model(str(parts[0].rename(tmp_path / "renamed.gguf"))))


def test_the_ending_may_be_in_capitals(tmp_path: Path, parts: list[Path]):
    (tmp_path / "one").mkdir()
    file = write_gguf(tmp_path / "one" / "M.GGUF", TENSORS, extra=byte_level_metadata("qwen2"))
    for named in (file, file.parent):
        source = resolve_model(str(named), tokenizer=str(file))
        assert (source.kind, source.path, source.name, source.tokenizer) == ("gguf", file, "M", file)
        assert load_model_config(source).hidden_size == METADATA["embedding_length"]
        assert load_tokenizer(source).encode("hello")
    capitals = [part.rename(part.with_name(part.name.replace(".gguf", ".GGUF"))) for part in parts]
    assert resolve_model(str(capitals[1])).weight_files() == capitals
    with pytest.raises(ModelLoadError, match="does not exist"):
        resolve_model("missing.GGUF")


@pytest.mark.parametrize(("type_id", "name"), [(29, "IQ1_M"), (23, "IQ4_XS"), (39, "MXFP4"), (9999, "9999")])
def test_a_type_that_is_not_supported_is_refused_by_its_name(tmp_path: Path, type_id: int, name: str):
    file = write_gguf(tmp_path / "m.gguf", TENSORS, qtype="Q8_0")
    data = bytearray(file.read_bytes())
    entry = b"blk.0.attn_q.weight"
    at = data.index(entry) + len(entry) + 4 + 2 * 8
    assert int.from_bytes(data[at : at + 4], "little") == gguf.GGMLQuantizationType.Q8_0
    data[at : at + 4] = type_id.to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(
        ModelLoadError, match=rf"tensor blk.0.attn_q.weight has ggml type {name}, which is not supported"
    ):
        load_model_config(resolve_model(str(file)))
