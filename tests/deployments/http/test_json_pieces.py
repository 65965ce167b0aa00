"""The reader of JSON in pieces: what it takes and gives is what the standard library takes and gives."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.http import json_pieces
from deployments.http.json_pieces import JsonLimitError, read_json_text, write_json

INTEGERS = st.integers(-(10**20), 10**20)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(INTEGERS, max_size=6)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def outcome(read, data: bytes) -> str:
    """What came of it, with types; or that it was refused."""
    try:
        return repr(read(data))
    except (ValueError, RecursionError):
        return "refused"


def library(data: bytes) -> object:
    return json.loads(data, parse_constant=refuse)


@settings(deadline=None)
@given(value=VALUES, escaped=st.booleans(), indent=st.sampled_from([None, 0, 2]))
def test_what_was_written_is_read(value, escaped, indent):
    data = json.dumps(value, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    assert repr(read_json_text(data)) == repr(value)
    assert "".join(write_json(value)) == "".join(write_json(value, in_pieces=True))


PIECES = [
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    '"',
    "\\",
    "\\n",
    "\\u12",
    "\\ud83d",
    "\\ude00",
    '\\"',
    "1",
    "-",
    "0",
    ".5",
    "e3",
]
PIECES += [
    " ",
    "\n",
    "\t",
    "\x01",
    "a",
    "é",
    "😀",
    "null",
    "true",
    "NaN",
    "Infinity",
    "-Infinity",
    "12,",
    '"a":',
    "\ufeff",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_what_is_no_json_is_refused_by_both(text):
    data = text.encode()
    assert outcome(read_json_text, data) == outcome(library, data)


@settings(deadline=None, max_examples=20)
@given(text=st.text('a\\"\n\ud83d\U0001f600é\x7f', max_size=40), times=st.integers(1, 3))
def test_a_long_string_is_read_in_pieces(text, times):
    """Pieces end neither inside an escape nor between two halves of a character."""
    repeated = text * (70_000 // max(1, len(text))) * times
    for escaped in (False, True):
        data = json.dumps([repeated], ensure_ascii=escaped).encode("utf-8", "surrogatepass")
        assert read_json_text(data) == json.loads(data)


@pytest.mark.parametrize(
    "data", [b"[1,2,]", b"[1,]", b"[,1]", b"[01,2]", b"[1,2", b"[1 2]", b"[1,-]", b"1 2", b"", b"[1.,2]", b"[1,\xa02]"]
)
def test_lists_of_numbers_are_as_strict_as_others(data):
    assert outcome(read_json_text, data) == outcome(library, data) == "refused"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_any_unicode_encoding_is_read(encoding):
    data = '{"é": [1, 2]}'.encode(encoding)
    assert read_json_text(data) == json.loads(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b"[" + b'"",' * json_pieces.MAX_VALUES + b'""]', "65536 values"),
        (json.dumps({str(i): i for i in range(1025)}).encode(), "1024 keys"),
        (b"1" * 41, "41 digits"),
        (b"1" * 10**6, "too many digits"),
    ],
)
def test_what_is_too_much_is_refused_by_its_limit(data, what):
    with pytest.raises(JsonLimitError, match=what):
        read_json_text(data)


def test_as_much_as_the_limits_say_is_read():
    deep = b"[" * 64 + b"]" * 64
    assert read_json_text(deep) == json.loads(deep)
    many = [1] * 10**6
    assert read_json_text(json.dumps(many).encode()) == many
    assert read_json_text(b"1" * 40) == int("1" * 40)
    assert len(read_json_text(json.dumps({str(i): i for i in range(1024)}).encode())) == 1024
    assert math.isinf(read_json_text(b"1e999"))
