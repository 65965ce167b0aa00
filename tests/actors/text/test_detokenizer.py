"""Pieces of text joined are the decoded whole, whatever the tokens are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.text.detokenizer import IncrementalDetokenizer
from actors.text.gguf_tokenizer import build_tokenizer
from actors.text.tokenizer import Tokenizer, TokenizerParts
from tests.actors.text.tiny_tokenizer import byte_level_metadata

GOLDEN = Path(__file__).parents[2] / "golden"


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "sentencepiece":
        metadata = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))["metadata"]
    else:
        metadata = byte_level_metadata("gpt-2")
    return Tokenizer(TokenizerParts(build_tokenizer(metadata, Path(kind))), kind)


def joined(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> str:
    """What is shown of ``ids``, and what ``decode`` makes of bytes that the last ones leave incomplete.

    Mostly one U+FFFD. Two for the first bytes of a surrogate: the decoder waits for a third although none makes it a character.
    """
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    shown = "".join([detokenizer.push(i) for i in ids])
    held_back, _ = detokenizer._decoder.getstate()
    assert detokenizer.is_amid_character == bool(held_back)
    return shown + held_back.decode("utf-8", "replace")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("raw", [b"\xed\xa0", b"\xf0\x9f\xa6", b"\xe2\x82", b"\xff", b"\xc0\x80", b"\xf4\x90\x80"])
def test_bytes_that_end_a_text_in_the_middle_of_a_character(kind: str, raw: bytes):
    tokenizer = tokenizer_of(kind)
    table = tokenizer.token_bytes_table
    of_byte = {table[i]: i for i in range(tokenizer.vocab_size)}
    ids = [of_byte[bytes([b])] for b in raw]
    assert joined(tokenizer, ids, skip=False) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@given(data=st.data(), skip=st.booleans())
def test_any_ids_join_to_the_decoded_whole(kind: str, data: st.DataObject, skip: bool):
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    assert joined(tokenizer, ids, skip) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@given(text=st.text(max_size=60))
def test_any_text_survives(kind: str, text: str):
    tokenizer = tokenizer_of(kind)
    if kind == "sentencepiece" and "▁" in text:
        text = text.replace("▁", "_")  # the one character that SentencePiece itself cannot tell from a space
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert joined(tokenizer, ids, skip=False) == text


@given(ids=st.lists(st.integers(0, 49151), max_size=60), skip=st.booleans())
def test_random_smollm2_tokens_join_to_the_decoded_whole(smollm2_tokenizer: Tokenizer, ids: list[int], skip: bool):
    assert joined(smollm2_tokenizer, ids, skip) == smollm2_tokenizer.decode(ids, skip)


@given(ids=st.lists(st.one_of(st.integers(0, 400), st.integers(0, 49155)), max_size=60), skip=st.booleans())
def test_a_whole_text_is_what_its_token_adds(smollm2_tokenizer: Tokenizer, ids: list[int], skip: bool):
    for tokenizer in (smollm2_tokenizer, tokenizer_of("sentencepiece")):
        detokenizer = IncrementalDetokenizer(tokenizer, skip)
        for token in ids:
            whole = tokenizer.whole_text(token) if detokenizer.takes_whole_texts else None
            text = detokenizer.push(token)
            if whole is not None:
                assert (text, detokenizer.takes_whole_texts) == (whole, True)


def test_special_tokens_and_parts_of_characters_have_no_whole_text(smollm2_tokenizer: Tokenizer):
    (special,) = smollm2_tokenizer.encode("<|im_end|>")
    parrot = smollm2_tokenizer.encode("🦜")
    assert [smollm2_tokenizer.whole_text(token) for token in (special, *parrot, -1, 10**6)] == [None] * (
        3 + len(parrot)
    )
    (word,) = smollm2_tokenizer.encode(" word")
    assert smollm2_tokenizer.whole_text(word) == " word"


def test_a_character_is_held_back_until_it_is_whole(smollm2_tokenizer: Tokenizer):
    ids = smollm2_tokenizer.encode("🦜")
    assert len(ids) > 1
    detokenizer = IncrementalDetokenizer(smollm2_tokenizer)
    assert [detokenizer.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🦜"]


def test_a_character_that_never_becomes_whole_is_not_shown(smollm2_tokenizer: Tokenizer):
    ids = smollm2_tokenizer.encode("ab🦜")[:-1]
    detokenizer = IncrementalDetokenizer(smollm2_tokenizer)
    shown = "".join(detokenizer.push(i) for i in ids)
    assert (shown, smollm2_tokenizer.decode(ids)) == ("ab", "ab\ufffd")
    assert detokenizer.push(smollm2_tokenizer.encode("c")[0]) == "\ufffdc"


def test_a_character_that_the_text_before_began_is_completed(smollm2_tokenizer: Tokenizer):
    """And nothing but its bytes is taken from the text before."""
    ids = smollm2_tokenizer.encode("ab🦜")
    for cut in range(1, len(ids)):
        before = "".join(map(IncrementalDetokenizer(smollm2_tokenizer).push, ids[:cut]))
        detokenizer = IncrementalDetokenizer(smollm2_tokenizer, continues=ids[:cut])
        assert before + "".join(map(detokenizer.push, ids[cut:])) == "ab🦜"


def test_special_tokens_are_shown_only_on_request(smollm2_tokenizer: Tokenizer):
    ids = smollm2_tokenizer.encode("hi<|im_end|>there")
    assert joined(smollm2_tokenizer, ids) == "hithere"
    assert joined(smollm2_tokenizer, ids, skip=False) == "hi<|im_end|>there"


def test_first_space_of_sentencepiece_stays_when_a_text_is_continued():
    tokenizer = tokenizer_of("sentencepiece")
    ids = tokenizer.encode("the sea", add_special_tokens=False)
    assert joined(tokenizer, ids) == "the sea"
    detokenizer = IncrementalDetokenizer(tokenizer, continues=[])
    assert "".join(detokenizer.push(i) for i in ids) == " the sea"


def test_time_per_token_does_not_grow(smollm2_tokenizer: Tokenizer):
    """What one token costs is a bounded number of bytes held back, not a length of text."""
    detokenizer = IncrementalDetokenizer(smollm2_tokenizer)
    for i in smollm2_tokenizer.encode("word 🦜 ") * 200:
        detokenizer.push(i)
        held_back, _ = detokenizer._decoder.getstate()
        assert len(held_back) <= 3
