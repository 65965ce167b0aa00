"""JSON read in pieces: between any two of them other threads run, however long the text and whatever is in it.

``json.loads`` is one call that keeps the interpreter to itself, a tenth of a second for a megabyte of small lists or keys. This
reader takes what a client may send and gives what ``json.loads`` would. It belongs into a thread, where it takes longer and holds
up nobody. Depth, number of values and keys, and length of numbers are bounded. Long answers are written in pieces, too.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]
from typing import Any

import msgspec

MAX_DEPTH = 64
MAX_VALUES = 2**16
MAX_KEYS = 2**10
MAX_DIGITS = 40

_PIECE = 2**16
# So much holds nobody up.
_SMALL_BYTES = 2**13
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_MANY_ZEROS = b"0" * (MAX_DIGITS + 1)
_SPACE = re.compile(r"[ \t\n\r]*")
# Elements of a list of token ids, all but the last one.
_INTEGERS = re.compile(r"(?:[ \t\n\r]{0,16}-?(?:0|[1-9]\d{0,18})[ \t\n\r]{0,16},){1,4096}", re.ASCII)
_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_MANY_PLAIN = 64
# A pair of surrogates is one character, so a piece of a string must not end between its halves.
_STRING = re.compile(
    r'(?:[^"\\]{1,64}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]){1,2048}'
)
_QUICK = msgspec.json.Decoder()
_LITERALS = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}
_NOT_JSON = ("NaN", "Infinity", "-Infinity")


# So many values are written in one call, within a millisecond.
_VALUES_AT_ONCE = 2**11
_CHARS_A_VALUE = 64
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class JsonLimitError(ValueError):
    """Valid JSON, perhaps, but more than is read here."""


def read_json_text(data: bytes | bytearray) -> Any:
    """The value that ``data`` holds.

    Raises:
        ValueError: it is not JSON, or a JsonLimitError: it is nested too deeply, has too many values, or too long a number.
    """
    if len(data) <= _SMALL_BYTES and not _may_exceed(data):
        # What this one does not take, half a pair of surrogates or a number without bounds, the library does; what is wrong with
        # all else, the reader says.
        for read in (_QUICK.decode, json.loads):
            with contextlib.suppress(ValueError):
                return read(data)
    return _Reader(_decoded(data)).whole()


def _may_exceed(data: bytes | bytearray) -> bool:
    """Whether there may be anything in a short text that ``json.loads`` takes and that is not read here."""
    return (
        data.count(b"[") + data.count(b"{") > MAX_DEPTH
        or data.count(b":") > MAX_KEYS
        or b"NaN" in data
        or b"Infinity" in data
        or 0 in data  # other encodings
        or _MANY_ZEROS in data.translate(_ZEROS)
    )


def write_json(value: Any, in_pieces: bool = False) -> list[str]:
    """JSON without spaces and escapes of what is not ASCII. ``in_pieces`` takes longer, and other threads run meanwhile."""
    return list(_written(value)) if in_pieces else [_ENCODER.encode(value)]


def _written(value: Any) -> Iterator[str]:
    if _room_left(value, _VALUES_AT_ONCE) >= 0:
        yield _ENCODER.encode(value)
    elif isinstance(value, dict):
        for i, (name, item) in enumerate(value.items()):
            # As the library writes names that are no strings.
            yield ("," if i else "{") + _ENCODER.encode({name: 0})[1:-2]
            yield from _written(item)
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield from _written_list(value)
    else:
        yield _ENCODER.encode(value)


def _written_list(values: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    """Small neighbours are written together."""
    joint, begin, room = "[", 0, _VALUES_AT_ONCE
    for i, item in enumerate(values):
        left = _room_left(item, room)
        if left >= 0:
            room = left
            continue
        if begin < i:
            yield joint + _ENCODER.encode(values[begin:i])[1:-1]
            joint = ","
        begin, room = i, _room_left(item, _VALUES_AT_ONCE)
        if room < 0:
            yield joint
            yield from _written(item)
            joint, begin, room = ",", i + 1, _VALUES_AT_ONCE
    yield (joint + _ENCODER.encode(values[begin:])[1:-1] if begin < len(values) else "") + "]"


def _room_left(value: Any, room: int) -> int:
    """What is left of a room of so many values with ``value`` in it; below 0 if it does not fit, and not all is looked at."""
    room -= 1
    if isinstance(value, str):
        return room - len(value) // _CHARS_A_VALUE
    if isinstance(value, dict):
        for name, item in value.items():
            room = _room_left(item, room - len(name) // _CHARS_A_VALUE if isinstance(name, str) else room)
            if room < 0:
                break
    elif isinstance(value, (list, tuple)):
        for item in value:
            room = _room_left(item, room)
            if room < 0:
                break
    return room


def _decoded(data: bytes | bytearray) -> str:
    encoding = json.detect_encoding(data)
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        pieces = [decoder.decode(data[begin : begin + _PIECE]) for begin in range(0, len(data), _PIECE)]
        return "".join([*pieces, decoder.decode(b"", final=True)])
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


class _Reader:
    """Every method takes the index where its part begins, and those that read return (what it is, index behind it)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._num_values = 0
        self._keys: dict[str, str] = {}

    def whole(self) -> Any:
        value, end = self._value(self._skip(0), 0)
        end = self._skip(end)
        if end != len(self._text):
            raise JSONDecodeError("Extra data", self._text, end)
        return value

    def _skip(self, index: int) -> int:
        while True:
            end = _SPACE.match(self._text, index, index + _PIECE).end()  # type: ignore[union-attr]
            if end < index + _PIECE:
                return end
            index = end

    def _value(self, index: int, depth: int) -> tuple[Any, int]:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise JsonLimitError(f"it holds more than {MAX_VALUES} values, not counting lists of token ids")
        first = self._text[index : index + 1]
        if first == '"':
            return self._string(index)
        if first == "[" or first == "{":
            if depth == MAX_DEPTH:
                raise JsonLimitError(f"it is nested more than {MAX_DEPTH} levels deep")
            return self._list(index + 1, depth + 1) if first == "[" else self._object(index + 1, depth + 1)
        if first in _LITERALS:
            name, value = _LITERALS[first]
            if self._text.startswith(name, index):
                return value, index + len(name)
        match = _NUMBER.match(self._text, index, index + _PIECE)
        if match is not None and match.end() < index + _PIECE:
            return self._number(match), match.end()
        if match is not None:
            raise JsonLimitError("it holds a number of too many digits")
        for name in _NOT_JSON:
            if self._text.startswith(name, index):
                raise ValueError(f"{name} is not JSON")
        raise JSONDecodeError("Expecting value", self._text, index)

    def _number(self, match: re.Match[str]) -> int | float:
        whole, fraction, exponent = match.groups()
        if fraction or exponent:
            return float(match[0])
        if len(whole) > MAX_DIGITS:
            raise JsonLimitError(f"it holds an integer of {len(whole)} digits; at most {MAX_DIGITS} are read")
        return int(whole)

    def _list(self, index: int, depth: int) -> tuple[list[Any], int]:
        text = self._text
        values: list[Any] = []
        index = self._skip(index)
        if text.startswith("]", index):
            return values, index + 1
        while True:
            run = _INTEGERS.match(text, index)
            if run is not None:
                values += json.loads(f"[{run[0][:-1]}]")
                index = self._skip(run.end())
                continue
            value, index = self._value(index, depth)
            values.append(value)
            index = self._skip(index)
            if text.startswith("]", index):
                return values, index + 1
            index = self._comma(index)

    def _object(self, index: int, depth: int) -> tuple[dict[str, Any], int]:
        text = self._text
        values: dict[str, Any] = {}
        index = self._skip(index)
        if text.startswith("}", index):
            return values, index + 1
        while True:
            if not text.startswith('"', index):
                raise JSONDecodeError("Expecting property name enclosed in double quotes", text, index)
            key, index = self._string(index)
            index = self._skip(index)
            if not text.startswith(":", index):
                raise JSONDecodeError("Expecting ':' delimiter", text, index)
            if len(values) == MAX_KEYS:
                raise JsonLimitError(f"it holds an object of more than {MAX_KEYS} keys")
            values[self._keys.setdefault(key, key)], index = self._value(self._skip(index + 1), depth)
            index = self._skip(index)
            if text.startswith("}", index):
                return values, index + 1
            index = self._comma(index)

    def _comma(self, index: int) -> int:
        if not self._text.startswith(",", index):
            raise JSONDecodeError("Expecting ',' delimiter", self._text, index)
        return self._skip(index + 1)

    def _string(self, index: int) -> tuple[str, int]:
        text, begin = self._text, index + 1
        end = text.find('"', begin, begin + _PIECE)
        if end >= 0 and text.find("\\", begin, end) < 0:
            return scanstring(text, begin, True)
        pieces, position = [], begin
        while True:
            plain = _PLAIN.match(text, position, position + _PIECE)
            if plain is not None and plain.end() >= position + _MANY_PLAIN:
                pieces.append(plain[0])
                position = plain.end()
                continue
            run = _STRING.match(text, position)
            if run is None:
                break
            pieces.append(scanstring(run[0] + '"', 0, True)[0])
            position = run.end()
        if text.startswith('"', position):
            return "".join(pieces), position + 1
        if position == len(text):
            raise JSONDecodeError("Unterminated string starting at", text, index)
        return scanstring(text, position, True)  # an escape that JSON does not have: raises
