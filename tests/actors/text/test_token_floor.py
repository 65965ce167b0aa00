"""The fewest tokens that a text can have: never more than it has, and enough to refuse what cannot fit."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.text import token_floor
from actors.text.gguf_tokenizer import build_tokenizer
from actors.text.tokenizer import Tokenizer, TokenizerParts
from tests.actors.text.tiny_tokenizer import byte_level_metadata
from tests.conftest import GOLDEN


def sentencepiece() -> tokenizers.Tokenizer:
    return build_tokenizer(
        json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))["metadata"], Path("sp")
    )


def byte_level(pre: str) -> tokenizers.Tokenizer:
    return build_tokenizer(byte_level_metadata(pre), Path(pre))


def striped() -> tokenizers.Tokenizer:
    """One whose special token takes the spaces around it."""
    backend = byte_level("gpt-2")
    backend.add_tokens([tokenizers.AddedToken("<mask>", special=True, lstrip=True, rstrip=True)])
    return backend


def lossy() -> tokenizers.Tokenizer:
    backend = byte_level("gpt-2")
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFD(), tokenizers.normalizers.StripAccents()]
    )
    return backend


BACKENDS = {
    "gpt-2": lambda: byte_level("gpt-2"),
    "llama3": lambda: byte_level("llama-bpe"),
    "qwen2": lambda: byte_level("qwen2"),
    "sentencepiece": sentencepiece,
    "striped": striped,
    "lossy": lossy,
}


@pytest.fixture(scope="module")
def tokenizer_of(smollm2_tokenizer):
    made = {name: Tokenizer(TokenizerParts(make()), name) for name, make in BACKENDS.items()}
    return {**made, "smollm2": smollm2_tokenizer}


# The tables are filled as tokens are seen, so that the first text takes longest.
LENIENT = settings(deadline=None, max_examples=60)
WORDS = [
    "hello",
    " ",
    "  ",
    " " * 64,
    "\n",
    "\r\n",
    "\t",
    "123",
    "<s>",
    "</s>",
    "<|im_end|>",
    "<mask>",
    "▁",
    "▁▁",
    "\x00",
    "\x04",
]
WORDS += [
    "e\u0301",
    "\u0301" * 3,
    "\u1112\u1161\u11ab",
    "\u212a",
    "\u1f82",
    "α\u0313\u0300\u0345",
    "中文",
    "😀",
    "\u3000",
    "=" * 66,
    "the sea",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=30).map("".join)
NAMES = [*BACKENDS, "smollm2"]


@pytest.mark.parametrize("name", NAMES)
@LENIENT
@given(text=TEXTS)
@example(text="")
@example(text="\u0301" * 50)
@example(text="a\x04b" * 20)
@example(text="▁" * 50)
def test_no_text_is_said_to_have_more_tokens_than_it_has(name, text, tokenizer_of):
    tokenizer = tokenizer_of[name]
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        return
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    assert not tokenizer.floor.exceeds(text, num_tokens)


@pytest.mark.parametrize("name", NAMES)
@LENIENT
@given(text=TEXTS)
def test_pieces_of_a_text_count_no_more_than_the_whole(name, text, tokenizer_of):
    """Characters that are composed across the end of a piece."""
    tokenizer = tokenizer_of[name]
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_floor, "_PIECE_CHARS", 7)
        assert not tokenizer.floor.exceeds(text, len(tokenizer.encode(text, add_special_tokens=False)))


@pytest.mark.parametrize("longest", ["\n" + " " * 80, "=" * 66, " congratulations", "!!!!", "😀"])
def test_a_text_of_the_longest_tokens_fits(longest, smollm2_tokenizer):
    """What the floor is told apart from: the length of the text in characters, or a mean."""
    text = longest * 500
    assert not smollm2_tokenizer.floor.exceeds(text, len(smollm2_tokenizer.encode(text)))


@pytest.mark.parametrize("name", [*set(NAMES) - {"lossy"}])
@pytest.mark.parametrize("text", ["hello world ", "中文", "😀", "x  "])
def test_a_text_of_megabytes_is_known_to_be_too_long(name, text, tokenizer_of):
    assert tokenizer_of[name].floor.is_known
    assert tokenizer_of[name].floor.exceeds(text * 200_000, 8191)


def test_a_tokenizer_that_drops_text_has_no_floor(tokenizer_of):
    assert not tokenizer_of["lossy"].floor.is_known
    assert not tokenizer_of["lossy"].floor.exceeds("x" * 10**6, 1)


@pytest.mark.parametrize("name", NAMES)
@LENIENT
@given(text=TEXTS, add_special_tokens=st.booleans())
def test_encoding_that_lets_others_run_gives_the_same_ids(name, text, add_special_tokens, tokenizer_of):
    """The library's plain ``encode`` keeps the interpreter to itself."""
    tokenizer = tokenizer_of[name]
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        return
    plain = tokenizer._backend.encode(text, add_special_tokens=add_special_tokens).ids
    assert tokenizer.encode(text, add_special_tokens=add_special_tokens) == plain


def test_encoding_lets_other_threads_run(smollm2_tokenizer):
    turns, over = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not over.is_set():
            time.sleep(0.001)
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    begun = time.perf_counter()
    smollm2_tokenizer.encode(" " * 400_000)
    took = time.perf_counter() - begun
    over.set()
    thread.join()
    assert turns > 20, f"{turns} turns in {took:.2f} s"
