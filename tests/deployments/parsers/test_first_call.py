"""An answer's first call, and nothing behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.parsers.first_call import FirstCall
from deployments.parsers.tool_formats import TOOL_FORMATS
from tests.deployments.parsers.found import found, tools
from tests.deployments.parsers.written_calls import WEATHER, WRITTEN


def up_to_first_call(family: str, pieces: list[str]) -> str:
    """As much of a text in pieces as an answer with one call has."""
    first, text = FirstCall(tools(family, weather=WEATHER)), ""
    for piece in pieces:
        end = first.end_in(piece)
        text += piece[:end]
        if end is not None:
            break
    return text


@pytest.mark.parametrize(("family", "text", "expected"), WRITTEN)
def test_the_first_call_is_whole_and_alone_however_the_text_is_cut(family, text, expected):
    form = tools(family, weather=WEATHER)
    for pieces in (list(text), [text], *([text[:cut], text[cut:]] for cut in range(1, len(text), 3))):
        kept = up_to_first_call(family, pieces)
        got = found([kept], form)
        assert got.calls == expected.calls[:1]
        assert text.startswith(kept) and expected.content.startswith(got.content)
        if not expected.calls or not expected.calls[0][2]:
            assert kept == text


@pytest.mark.parametrize("family", sorted(TOOL_FORMATS))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_of_two_calls_the_second_is_not_there(family, data):
    wrapping = TOOL_FORMATS[family].wrapping
    arguments = {True: '{"a": {"b": [1]}}', False: ""}[wrapping.arguments is None]
    text = wrapping.written([("f", arguments), ("g", arguments)])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=9)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)])]
    form = tools(family)
    both, one = found([text], form), found([up_to_first_call(family, pieces)], form)
    assert len(both.calls) == 2 and one.calls == both.calls[:1] and not one.content
