"""Wrapping of text that arrives in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from cluster.terminal.wrapped_text import WrappedText


def shown(pieces: list[str], width: int) -> str:
    out: list[str] = []
    text = WrappedText(lambda: width, out.append)
    for piece in pieces:
        text.add(piece)
    text.end_word()
    return "".join(out)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one two th", "ree four"], "one two \nthree four"),
        (["abcdefghijklmno"], "abcdefghij\nklmno"),
        (["a\n\nb"], "a\n\nb"),
        (["一二三四五六七"], "一二三四五\n六七"),
        (["a\x1b[2Jb\x07\r"], "a[2Jb"),
    ],
)
def test_words_stay_whole_and_nothing_commands_the_terminal(pieces, expected):
    assert shown(pieces, 10) == expected


@given(st.lists(st.text(st.sampled_from("ab 一\n\t.")), max_size=8), st.integers(2, 20))
def test_no_line_is_wider_than_the_terminal_and_no_sign_is_lost(pieces, width):
    lines = shown(pieces, width).split("\n")
    assert max(map(cell_len, lines)) <= width
    kept = [sign for piece in pieces for sign in piece if not sign.isspace()]
    assert [sign for line in lines for sign in line if not sign.isspace()] == kept
    assert shown(["".join(pieces)], width) == "\n".join(lines), "how it is cut into pieces makes no difference"
