"""What an engine knows of its model's tokens, without a tokenizer."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from actors.model_files.source import ModelSource
from actors.text import vocabulary
from actors.text.kept_vocabulary import KeptVocabulary
from actors.text.vocabulary import Vocabulary, load_vocabulary
from benchmarks.random_tokenizer import write_tokenizer
from cluster.errors import ModelLoadError
from tests.deployments.openai_api.tool_tokenizer import END, tool_tokenizer


def test_tokens_are_those_of_the_tokenizer_also_in_another_process():
    tokenizer = tool_tokenizer()
    size = tokenizer.vocab_size + 5
    made = Vocabulary.of(tokenizer, size)
    for found in (made, Vocabulary.parse(made.dump())):
        assert len(found) == size and found.special_ids == tokenizer.special_ids
        for token in range(-1, size + 1):
            assert found.token_bytes(token) == tokenizer.token_bytes(token), token
        for text in (END, "[TOOL_CALLS]", "<tool_call>", "a", "none"):
            assert found.special_id(text) == tokenizer.special_id(text), text


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of vocabularies of an empty cache."""
    monkeypatch.setenv("BIREME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vocabularies"


def test_a_process_of_its_own_reads_it(smollm2_source, smollm2_tokenizer, cache):
    loaded, size = load_vocabulary(smollm2_source, 49_152), smollm2_tokenizer.vocab_size
    assert [loaded.token_bytes(i) for i in range(size)] == [smollm2_tokenizer.token_bytes(i) for i in range(size)]
    assert loaded.special_ids == smollm2_tokenizer.special_ids


def test_files_at_fault_are_said_as_the_tokenizer_says_it_and_a_lost_process_is_not(
    smollm2_source, tmp_path, monkeypatch, cache
):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is damaged"):
        load_vocabulary(dataclasses.replace(smollm2_source, tokenizer=tmp_path), 10)
    with pytest.raises(ModelLoadError, match=r"has no tokenizer\.json"):
        load_vocabulary(dataclasses.replace(smollm2_source, tokenizer=None), 10)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="ended with 1"):
        load_vocabulary(smollm2_source, 10)


def test_a_process_that_hangs_is_not_waited_for(smollm2_source, tmp_path, monkeypatch, cache):
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(vocabulary, "_READ_TIMEOUT_S", 0.2)
    with pytest.raises(OSError, match=r"took more than 0\.2 s"):
        load_vocabulary(smollm2_source, 10)


def test_what_was_read_is_kept_until_its_files_change(tmp_path, cache, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json", 600)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|special_0|>"}')
    (folder / "config.json").write_text('{"eos_token_id": 599}')
    source = ModelSource("safetensors", folder, folder, "m")
    read = load_vocabulary(source, 600)
    python = sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/false")
    again = load_vocabulary(source, 600)
    assert [again.token_bytes(i) for i in range(600)] == [read.token_bytes(i) for i in range(600)]
    assert again.special == read.special
    (file,) = cache.iterdir()
    # Other rows, another time of a file beside the tokenizer's, a damaged file: it is read anew.
    with pytest.raises(OSError, match="ended with 1"):
        load_vocabulary(source, 599)
    dumped = file.read_bytes()
    file.write_bytes(dumped[:-100])
    with pytest.raises(OSError, match="ended with 1"):
        load_vocabulary(source, 600)
    file.write_bytes(dumped)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|special_1|>"}')
    with pytest.raises(OSError, match="ended with 1"):
        load_vocabulary(source, 600)
    monkeypatch.setattr(sys, "executable", python)
    load_vocabulary(source, 600)
    assert len(list(cache.iterdir())) == 2
    # What others may write to is not read.
    cache.chmod(0o777)
    assert KeptVocabulary(source, 600).read() is None


def test_vocabularies_that_were_not_used_for_longest_go(smollm2_source, cache):
    for size in range(20):
        KeptVocabulary(smollm2_source, size).write(b"x")
    left = [size for size in range(20) if KeptVocabulary(smollm2_source, size).read() is not None]
    assert len(left) == 16 and 19 in left
