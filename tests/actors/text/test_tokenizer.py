"""Token ids equal those of the reference tokenizers; loading refuses what it does not know, by name."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, processors

from actors.model_files.source import ModelSource, resolve_model
from actors.text.gguf_tokenizer import build_tokenizer
from actors.text.tokenizer import Tokenizer, TokenizerParts, load_tokenizer
from cluster.errors import InvalidRequestError, ModelLoadError
from tests.actors.text.tiny_tokenizer import byte_level_metadata


def from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer(TokenizerParts(build_tokenizer(metadata, Path("m.gguf"))), "m")


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special_tokens=False)]


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "smollm2_greedy.json").read_text(encoding="utf-8"))


@pytest.fixture
def byte_level_folder(golden: Path, tmp_path: Path) -> Path:
    """A model directory with a tokenizer.json."""
    folder = shutil.copytree(golden / "qwen2", tmp_path / "model")
    backend = build_tokenizer(byte_level_metadata("qwen2"), Path("m"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_difficult_strings_get_the_reference_ids(smollm2_tokenizer: Tokenizer, reference):
    for case in reference["tokenizations"]:
        ids = smollm2_tokenizer.encode(case["text"])
        assert ids == case["token_ids"], case["text"]
        assert smollm2_tokenizer.decode(ids, skip_special_tokens=False) == case["text"]


def test_prompts_and_generated_texts_match_the_reference(smollm2_tokenizer: Tokenizer, reference):
    for case in reference["cases"]:
        if "messages" in case:
            assert smollm2_tokenizer.apply_chat_template(case["messages"]) == case["rendered"]
        assert smollm2_tokenizer.encode(case["rendered"], add_special_tokens=False) == case["prompt_token_ids"]
        assert smollm2_tokenizer.decode(case["token_ids"]) == case["text"]


def test_smollm2_facts(smollm2_tokenizer: Tokenizer):
    assert smollm2_tokenizer.vocab_size == 49152
    assert smollm2_tokenizer.bos_token_id == 1
    assert smollm2_tokenizer.special_ids == frozenset(range(17))
    assert smollm2_tokenizer.token_text(2) == "<|im_end|>"
    assert smollm2_tokenizer.has_chat_template


def test_sentencepiece_matches_the_sentencepiece_library(golden: Path):
    content = json.loads((golden / "sentencepiece.json").read_text(encoding="utf-8"))
    tokenizer = from_metadata(content["metadata"])
    for case in content["tokenizations"]:
        ids = tokenizer.encode(case["text"], add_special_tokens=False)
        assert ids == case["token_ids"], case["text"]
        assert tokenizer.decode(ids) == case["decoded"]
    assert tokenizer.encode("x")[0] == content["metadata"]["tokenizer.ggml.bos_token_id"]


def test_decode_agrees_with_the_library(smollm2_tokenizer: Tokenizer, smollm2_source: ModelSource, reference):
    from actors.model_files.gguf.file import read_gguf

    backend = build_tokenizer(read_gguf(smollm2_source.path).metadata, smollm2_source.path)
    for case in reference["tokenizations"] + reference["cases"]:
        for cut in range(len(case["token_ids"]) + 1):
            ids = case["token_ids"][cut:]
            for skip in (True, False):
                assert smollm2_tokenizer.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "hello  1234", ["hello", " ", " ", "123", "4"]),
        ("smollm", "hello  1234", ["hello", "  ", "1", "2", "3", "4"]),
        ("qwen2", "hello 1234", ["hello", " ", "1", "2", "3", "4"]),
        ("llama-bpe", "hello 1234", ["hello", " ", "123", "4"]),
        ("llama-bpe", "12345", ["123", "4", "5"]),
    ],
)
def test_pre_tokenizers_split_numbers_their_own_way(pre: str, text: str, expected: list[str]):
    assert pieces(from_metadata(byte_level_metadata(pre)), text) == expected


def test_qwen2_composes_unicode():
    tokenizer = from_metadata(byte_level_metadata("qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


@pytest.mark.parametrize(
    ("pre", "changes", "around"),
    [
        ("gpt-2", {}, ([], [])),
        ("llama-bpe", {}, (["<s>"], [])),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, ([], [])),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, (["<s>"], ["</s>"])),
    ],
)
def test_prompts_are_surrounded_as_the_file_asks(pre: str, changes: dict[str, Any], around):
    tokenizer = from_metadata(byte_level_metadata(pre, **changes))
    ids = tokenizer.encode("hello")
    assert [tokenizer.token_text(i) for i in ids] == [*around[0], "hello", *around[1]]
    assert len(tokenizer.encode("hello", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer model 'bert' is not supported; supported: gpt2, llama"),
        ({"tokenizer.ggml.model": None}, "holds no tokenizer"),
        ({"tokenizer.ggml.pre": "viking"}, "pre-tokenizer 'viking' is not supported; supported: command-r"),
        ({"tokenizer.ggml.merges": ["nothing known"]}, "does not fit its merges"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "holds a token twice"),
        ({"tokenizer.ggml.model": "llama"}, "scores is missing"),
    ],
)
def test_gguf_tokenizers_that_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ModelLoadError, match=message) as caught:
        from_metadata({**byte_level_metadata("gpt-2"), **changes})
    assert caught.value.param == "tokenizer"


def test_directory_with_tokenizer_json(byte_level_folder: Path):
    (byte_level_folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ eos_token }}!"})
    )
    tokenizer = load_tokenizer(resolve_model(str(byte_level_folder)))
    bos = byte_level_metadata("x")["tokenizer.ggml.bos_token_id"]
    assert tokenizer.bos_token_id == bos
    assert tokenizer.apply_chat_template([]) == "</s>!"
    assert len(tokenizer.encode("hello hello hello")) == 5  # the file's truncation and padding are off
    assert tokenizer.vocab_size == bos + 3


def test_special_tokens_map_serves_where_tokenizer_config_is_silent(byte_level_folder: Path):
    (byte_level_folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    assert load_tokenizer(resolve_model(str(byte_level_folder))).bos_token_id is not None


def test_template_file_goes_before_the_one_in_tokenizer_config(byte_level_folder: Path):
    settings = {"chat_template": [{"name": "rag", "template": "rag"}, {"name": "default", "template": "inside"}]}
    (byte_level_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    source = resolve_model(str(byte_level_folder))
    assert load_tokenizer(source).apply_chat_template([]) == "inside"
    (byte_level_folder / "chat_template.json").write_text(json.dumps({"chat_template": "in JSON"}))
    assert load_tokenizer(source).apply_chat_template([]) == "in JSON"
    (byte_level_folder / "chat_template.jinja").write_text("beside")
    assert load_tokenizer(source).apply_chat_template([]) == "beside"
    (byte_level_folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match="is not UTF-8 text"):
        load_tokenizer(source)


def test_tokenizer_of_another_model(golden: Path, byte_level_folder: Path):
    source = resolve_model(str(golden / "qwen3"), tokenizer=str(byte_level_folder))
    assert load_tokenizer(source).encode("hello")


def test_missing_or_damaged_tokenizer(golden: Path, byte_level_folder: Path):
    with pytest.raises(ModelLoadError, match=r"has no tokenizer.json"):
        load_tokenizer(resolve_model(str(golden / "qwen2")))
    (byte_level_folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="is damaged"):
        load_tokenizer(resolve_model(str(byte_level_folder)))


def test_model_without_template_says_so(byte_level_folder: Path):
    tokenizer = load_tokenizer(resolve_model(str(byte_level_folder)))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="has no chat template") as caught:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    assert caught.value.code == "no_chat_template"


def test_decoder_that_is_not_known_is_refused():
    backend = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelLoadError, match="decoder of type WordPiece; supported: ByteLevel"):
        Tokenizer(TokenizerParts(backend), "m")


def test_ids_outside_the_vocabulary_have_no_text(smollm2_tokenizer: Tokenizer):
    assert smollm2_tokenizer.token_bytes(10**6) == smollm2_tokenizer.token_bytes(-1) == b""
    assert smollm2_tokenizer.decode([10**6, 19556]) == "Hello"


def test_lone_surrogate_is_refused_as_bad_input(smollm2_tokenizer: Tokenizer):
    with pytest.raises(InvalidRequestError, match="Unicode"):
        smollm2_tokenizer.encode("a\ud800b")


def test_token_bytes_join_to_the_text(smollm2_tokenizer: Tokenizer):
    text = "naïve 🙂 日本語"
    ids = smollm2_tokenizer.encode(text)
    assert b"".join(smollm2_tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert any("\ufffd" in smollm2_tokenizer.token_text(i) for i in ids)


def test_added_tokens_outside_the_byte_alphabet_are_plain_text():
    metadata = byte_level_metadata("gpt-2")
    marks = ["<｜end▁of▁sentence｜>", "<tool call>"]
    metadata["tokenizer.ggml.tokens"] += marks
    metadata["tokenizer.ggml.token_type"] += [3, 4]
    tokenizer = from_metadata(metadata)
    ids = tokenizer.encode("".join(marks))
    assert [tokenizer.token_text(i) for i in ids] == marks
    assert tokenizer.decode(ids) == "<tool call>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "".join(marks)


def test_template_processing_of_tokenizer_json_is_kept(byte_level_folder: Path):
    backend = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    backend.save(str(byte_level_folder / "tokenizer.json"))
    assert load_tokenizer(resolve_model(str(byte_level_folder))).encode("hello")[0] == bos


def test_loading_from_gguf_is_quick(smollm2_source: ModelSource):
    """Every ingress replica loads it; the bound is far above the usual 0.2 s, and below the seconds of a slow parser."""
    from actors.model_files.gguf import file as gguf_file

    gguf_file._read.cache_clear()
    began = time.process_time()
    load_tokenizer(smollm2_source)
    assert time.process_time() - began < 1.5
