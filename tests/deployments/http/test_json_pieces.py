"""The reader of JSON in pieces: what it takes and gives is what the standard library takes and gives."""

from __future__ import annotations

import json
import math
import re

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


@pytest.fixture(autouse=True, scope="module", params=[json_pieces._SMALL_BYTES, -1], ids=["as served", "in pieces"])
def small_bytes(request):
    """Short texts are read by the library where they may be; the reader gives the same for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "_SMALL_BYTES", request.param)
        yield


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


class Watched:
    """A pattern that notes how much of a text it was to look at in one call."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern
        self.longest = 0

    def match(self, text: str, begin: int, end: int | None = None) -> re.Match[str] | None:
        found = self.pattern.match(text, begin, len(text) if end is None else end)
        self.longest = max(self.longest, found.end() - begin if found else 0)
        return found


@pytest.mark.parametrize("piece", [" ", "x", "\U0001f600", "\\n", "\\ud83d\\ude00", "1", "1,", "x\\n"])
def test_no_call_looks_at_more_than_a_piece(piece, monkeypatch):
    names = ["_SPACE", "_PLAIN", "_STRING", "_NUMBER", "_INTEGERS"]
    watched = [Watched(getattr(json_pieces, name)) for name in names]
    for name, pattern in zip(names, watched):
        monkeypatch.setattr(json_pieces, name, pattern)
    many = piece * (300_000 // len(piece))
    for text in (many + "1", f'"{many}"', f"[{many}1]", f'{{"{many}":1}}', f"[1,{many}1]"):
        outcome(read_json_text, text.encode())
    assert max(pattern.longest for pattern in watched) <= 2**17


@pytest.mark.parametrize("size", [1, 7, 64])
@settings(deadline=None, max_examples=30)
@given(
    value=VALUES,
    spaces=st.text(" \t\n\r", min_size=1, max_size=40),
    indent=st.sampled_from([None, 1]),
    times=st.integers(1, 40),
)
def test_pieces_of_any_size_make_no_difference(size, value, spaces, indent, times):
    text = json.dumps([value, "é\n\U0001f600" * times, "plain" * times], indent=indent, ensure_ascii=bool(times % 2))
    data = (spaces + text.replace(",", f",{spaces}").replace(":", f"{spaces}:") + spaces).encode(
        "utf-8", "surrogatepass"
    )
    plain = outcome(library, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "_PIECE", max(size, 64))  # numbers are read in one piece
        patch.setattr(json_pieces, "_MANY_PLAIN", min(size, 64))
        assert outcome(read_json_text, data) == plain


NAMES = (
    st.text(max_size=4) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
)
WRITTEN = st.recursive(
    VALUES,
    lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)


@pytest.mark.parametrize("room", [1, 2, 20])
@settings(deadline=None, max_examples=30)
@given(value=WRITTEN)
def test_what_is_written_in_pieces_is_what_is_written_at_once(room, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "_VALUES_AT_ONCE", room)
        assert "".join(write_json(value, in_pieces=True)) == "".join(write_json(value))


def test_a_long_answer_is_written_in_short_pieces():
    entry = {"logprob": -1.25, "rank": 3, "decoded_token": "tok"}
    pieces = write_json({"choices": [{"tops": [{str(i): entry for i in range(21)}] * 2000, "text": "x" * 9}] * 2}, True)
    assert max(map(len, pieces)) < 2**17
    assert len(pieces) < 1000


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
