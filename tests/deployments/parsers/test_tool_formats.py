"""Calls as families of models write them, whole, cut at every character, and broken."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.parsers.answer_parser import AnswerParser
from deployments.parsers.scanning.events import CallArguments, CallBegin
from deployments.parsers.tool_formats import TOOL_FORMATS
from tests.deployments.parsers.found import Found, found, joined, tools
from tests.deployments.parsers.written_calls import D_BEGIN, D_CALL, D_CALL_END, D_END, D_SEP, WEATHER, WRITTEN, call

AS_JSON = [name for name, form in sorted(TOOL_FORMATS.items()) if form.wrapping.arguments is None]


@pytest.mark.parametrize(("family", "text", "expected"), WRITTEN)
def test_calls_are_found_however_the_text_is_cut(family, text, expected):
    form = tools(family, weather=WEATHER)
    assert found([text], form) == expected
    assert found(text, form) == expected
    for cut in range(len(text) + 1):
        assert found([text[:cut], text[cut:]], form) == expected, (text[:cut], text[cut:])


@pytest.mark.parametrize("family", AS_JSON)
def test_arguments_go_out_before_they_are_complete(family):
    parser = AnswerParser(tools(family))
    written = TOOL_FORMATS[family].wrapping.written([("f", '{"a": "bc"}')])
    events = parser.push(written[: written.index('c"')])
    assert events == [CallBegin(0, "f"), CallArguments(0, '{"a": "b')]


def test_a_text_among_arguments_goes_out_before_it_is_complete():
    parser = AnswerParser(tools("qwen3_coder", weather=WEATHER))
    events = parser.push('<tool_call><function=weather><parameter=city>\na "b"\n')
    assert joined(events).calls == (("weather", '{"city": "a \\"b\\"', False),)


def test_an_answer_of_marks_alone_is_content_and_not_read_over_and_over():
    text = '<tool_call>{"a":[' * 3000
    parser = AnswerParser(tools("hermes"))
    begin = time.perf_counter()
    events = parser.push(text) + parser.finish()
    assert time.perf_counter() - begin < 0.5
    assert joined(events) == Found(text)


_PIECES = [
    "<tool_call>", "</tool_call>", "<function=", "<parameter=city>", "</parameter>", "</function>", "<arg_key>", "</arg_key>",
    "<arg_value>", "</arg_value>", "[TOOL_CALLS]", "[ARGS]", D_BEGIN, D_END, D_CALL, D_CALL_END, D_SEP, "<|tool_call|>",
    "<|python_tag|>", '{"name": "weather", "arguments": ', '{"city": "Bern"}', "weather", "weather>", "\n", " ", "{", "}", "[",
    "]", '"', "\\", "(", ")", "city=", "'x'", ",", ";", "```json\n", "words", "<", "true", "12",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TOOL_FORMATS)), st.lists(st.sampled_from(_PIECES), max_size=14), st.data())
def test_any_text_is_read_alike_in_any_pieces(family, pieces, data):
    text = "".join(pieces)
    form = tools(family, weather=WEATHER)
    whole = found([text], form)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    assert found([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])], form) == whole
    assert found(pieces, form) == whole and found(text, form) == whole


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(AS_JSON),
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3), max_leaves=5),
            max_size=3,
        ),
        min_size=1,
        max_size=3,
    ),
)  # fmt: skip
def test_what_a_grammar_makes_is_read_back(family, arguments):
    written = [json.dumps(value) for value in arguments]
    calls = TOOL_FORMATS[family].wrapping.written([("f", text) for text in written])
    expected = Found("", tuple(call(text, "f") for text in written))
    assert found([calls], tools(family)) == expected


_NESTED = {"city": 'Z "ü" <b> ] } )', "at": {"a": [1, {"b": "}] </tool_call> [ARGS]"}], "c": None}}
_TAGGED = {**_NESTED, "at": {"a": [1, {"b": "}] </parameter> </arg_value>"}], "c": None}}


def _reference(family: str) -> tuple[str, dict]:
    """Two calls in a family's published form, the first with nested values that have its own marks in strings."""
    wrapping = TOOL_FORMATS[family].wrapping
    words = "Words first. " if wrapping.marker else ""
    if wrapping.arguments is None:
        return words + wrapping.written([("weather", json.dumps(_NESTED, ensure_ascii=False)), ("f", "{}")]), _NESTED
    if not wrapping.arguments.are_texts_bare:
        values = {"city": repr(_NESTED["city"]), "at": repr(_NESTED["at"])}
        return wrapping.written([("weather", f"city={values['city']}, at={values['at']}"), ("f", "")]), _NESTED
    before, middle, after = wrapping.arguments.argument
    values = {"city": _TAGGED["city"], "at": json.dumps(_TAGGED["at"])}
    written = "".join(f"{before}{key}{middle}{value}{after}" for key, value in values.items())
    return words + wrapping.written([("weather", written), ("f", "")]), _TAGGED


@pytest.mark.parametrize("family", sorted(TOOL_FORMATS))
def test_a_text_that_is_cut_anywhere_has_its_calls_as_far_as_they_came(family):
    form = tools(family, weather=WEATHER)
    text, arguments = _reference(family)
    whole = found([text], form)
    assert [name for name, _, done in whole.calls if done] == ["weather", "f"]
    assert [json.loads(written) for _, written, _ in whole.calls] == [arguments, {}]
    assert whole.content == ("Words first." if TOOL_FORMATS[family].wrapping.marker else "")
    # Cut inside of a value that is read as JSON, its text up to a tag in a string of it might be the whole of another value.
    text = text.replace("</parameter> </arg_value>", "")
    whole = found([text], form)
    for cut in range(len(text) + 1):
        got = found([text[:cut]], form)
        assert found(text[:cut], form) == got, text[:cut]
        assert all(done for _, _, done in got.calls[:-1])
        for (name, written, done), (of_whole, of_written, _) in zip(got.calls, whole.calls):
            assert name == of_whole and of_written.startswith(written) and (not done or written == of_written)
        # Behind a call stands what might have been the next one.
        rest = got.content.removeprefix(whole.content).lstrip()
        assert not got.calls or (got.content.startswith(whole.content) and text[:cut].rstrip().endswith(rest.rstrip()))


@pytest.mark.parametrize("family", sorted(TOOL_FORMATS))
def test_a_text_that_lacks_any_character_is_read_alike_in_any_pieces(family):
    form = tools(family, weather=WEATHER)
    text, _ = _reference(family)
    for lost in range(len(text)):
        broken = text[:lost] + text[lost + 1 :]
        whole = found([broken], form)
        assert found(broken, form) == whole, broken
        half = len(broken) // 2
        assert found([broken[:half], broken[half:]], form) == whole, broken
        # Nothing that was no call is lost: it is content, or stands among arguments.
        assert whole.content or whole.calls
