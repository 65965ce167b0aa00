"""A tokenizer of any size for models with random weights: byte-level, with tokens that look like words, digits and JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

_SYLLABLES = [
    *(
        "a",
        "e",
        "i",
        "o",
        "u",
        "ta",
        "re",
        "mi",
        "so",
        "la",
        "ti",
        "ex",
        "in",
        "on",
        "er",
        "an",
        "st",
        "th",
        "ing",
        "tion",
    ),
    *("ed", "al", "or", "ver", "com", "pro", "de", "un", "able", "ment", "ness", "ly"),
]
_MARKS = [
    '"',
    '":',
    '","',
    '{"',
    '"}',
    "}",
    "},",
    "[",
    "]",
    "],",
    ", ",
    ": ",
    "\n",
    "\n\n",
    "  ",
    "    ",
    ".",
    "-",
    "\\",
]
# As many as Llama 3 has at the end of its vocabulary.
_SPECIAL = [f"<|special_{number}|>" for number in range(256)]


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """Write a tokenizer.json with ``vocab_size`` tokens; the same for the same size.

    Its last tokens are special: no text has them.
    """
    rng = random.Random(vocab_size)
    (space,) = (token for token, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(" "))
    tokens = dict.fromkeys(sorted(ByteLevel.alphabet()))
    spelled = "".join(token for token, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str("\n"))
    tokens |= dict.fromkeys(mark.replace(" ", space).replace("\n", spelled) for mark in _MARKS)
    tokens |= dict.fromkeys(str(number) for number in range(1000))
    words = vocab_size - len(_SPECIAL)
    while len(tokens) < words:
        word = "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))
        tokens[rng.choice([word, word.capitalize(), space + word, space + word.capitalize()])] = None
    vocab = {token: i for i, token in enumerate(list(tokens)[:words] + _SPECIAL)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": vocab[token], "content": token, "special": True, **flags} for token in _SPECIAL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": False, "ignore_merges": True}
    path.write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": byte_level,
                "post_processor": None,
                "decoder": byte_level,
                "model": model,
            }
        )
    )
