"""A text that arrives in pieces, and what parsers read of it.

Parsers are generators: they yield events, and ``WAIT`` where they can say nothing more before more text comes. Each step waits
until the text alone decides it, so that events joined do not depend on how the text was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from enum import Enum
from typing import TypeVar

from deployments.parsers.scanning.events import Event


class Wait(Enum):
    """No event, but a pause."""

    FOR_TEXT = 0


WAIT = Wait.FOR_TEXT
_T = TypeVar("_T")
# None is an event that an ``Emit`` had nothing for.
Steps = Generator[Event | Wait | None, None, _T]
Emit = Callable[[str], Event | None]

_SPACE = " \t\r\n"
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'[{}\[\]"]')
_AFTER_SCALAR = re.compile(r"[,}\]\s]")
MAX_NAME_CHARS = 1024
_BEGINS_VALUE = frozenset('{["-0123456789tfn')


class Malformed(Exception):
    """The text is not of the format that its beginning promised."""


class Scanner:
    """The text that came and was not read.

    Attributes:
        text: held; what was read may still be part of it.
        pos: where in ``text`` reading goes on.
        ended: nothing more comes.
    """

    __slots__ = ("_mark", "ended", "pos", "text")

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.ended = False
        self._mark: int | None = None

    def feed(self, text: str) -> None:
        """More text came."""
        begin = self.pos if self._mark is None else self._mark
        self.text = self.text[begin:] + text
        self.pos -= begin
        self._mark = None if self._mark is None else 0

    def keep(self) -> None:
        """From here on text stays, so that ``rewind`` comes back to this place."""
        self._mark = self.pos

    def forget(self) -> None:
        """No ``rewind`` will come."""
        self._mark = None

    def rewind(self) -> int:
        """Read again from where ``keep`` was called; how many characters that are."""
        assert self._mark is not None
        length = self.pos - self._mark
        self.pos, self._mark = self._mark, None
        return length


def peek(scan: Scanner) -> Steps[str]:
    """The next character, empty at the end of the text."""
    while scan.pos >= len(scan.text):
        if scan.ended:
            return ""
        yield WAIT
    return scan.text[scan.pos]


def skip_space(scan: Scanner) -> Steps[str]:
    """Pass white space; the character behind it, empty at the end."""
    while (char := (yield from peek(scan))) and char in _SPACE:
        scan.pos += 1
    return char


def goes_on(scan: Scanner, literals: Sequence[str]) -> Steps[str]:
    """Pass the one of ``literals`` that comes next; empty, and nothing passed, if none does. None begins with another."""
    while True:
        for literal in literals:
            if scan.text.startswith(literal, scan.pos):
                scan.pos += len(literal)
                return literal
        if scan.ended or not any(_may_begin(scan.text, scan.pos, literal) for literal in literals):
            return ""
        yield WAIT


def until(scan: Scanner, markers: Sequence[str], emit: Emit, keeps_cut: bool = True) -> Steps[str]:
    """Pass text up to and with the first of ``markers``; the marker, empty at the end of the text. The text before it goes to
    ``emit`` as it comes. At one place the first of ``markers`` that is there counts.

    Args:
        keeps_cut: the beginning of a marker is text where the text ends in it; else it goes to nobody.
    """
    first = re.compile("[" + re.escape("".join({marker[0] for marker in markers})) + "]")
    while True:
        begin, text = scan.pos, scan.text
        place, waits = begin, False
        while (found := first.search(text, place)) is not None:
            place = found.start()
            marker = next((marker for marker in markers if text.startswith(marker, place)), "")
            begins = not (scan.ended and keeps_cut) and any(_may_begin(text, place, one) for one in markers)
            waits = begins and not scan.ended
            if begins and scan.ended:
                text = text[:place]
            if waits or marker:
                break
            place += 1
        else:
            place, marker = len(text), ""
        scan.pos = place
        if place > begin:
            yield emit(text[begin:place])
        if waits:
            yield WAIT
        elif marker:
            scan.pos += len(marker)
            return marker
        elif scan.ended:
            return ""
        else:
            yield WAIT


def _may_begin(text: str, place: int, marker: str) -> bool:
    """Whether what is held from ``place`` on is less than ``marker``, and begins it."""
    length = len(text) - place
    return length < len(marker) and marker.startswith(text[place:])


def text_until(scan: Scanner, markers: Sequence[str]) -> Steps[tuple[str, str]]:
    """Pass text up to and with the first of ``markers``; both.

    Raises:
        Malformed: the text ends before one, or there is too much of it for a name.
    """
    pieces: list[str] = []
    length = 0

    def note(piece: str) -> None:
        nonlocal length
        length += len(piece)
        if length > MAX_NAME_CHARS:
            raise Malformed
        pieces.append(piece)

    marker = yield from until(scan, markers, note)
    if not marker:
        raise Malformed
    return "".join(pieces), marker


def rest(scan: Scanner, emit: Emit) -> Steps[None]:
    """Pass all text to its end."""
    while True:
        text, scan.pos = scan.text[scan.pos :], len(scan.text)
        if text:
            yield emit(text)
        if scan.ended:
            return
        yield WAIT


def json_string(scan: Scanner) -> Steps[str]:
    """Pass a JSON string; what it says.

    Raises:
        Malformed: there is none, or it does not end.
    """
    if (yield from peek(scan)) != '"':
        raise Malformed
    raw = yield from raw_value(scan)
    try:
        return json.loads(raw, strict=False)
    except ValueError:
        raise Malformed from None


def raw_value(scan: Scanner, emit: Emit | None = None) -> Steps[str]:
    """Pass a JSON value, of which brackets and strings have to end, and no more is looked at; its text, or empty if that goes to
    ``emit`` as it comes.

    Raises:
        Malformed: there is none, or it does not end.
    """
    if (yield from peek(scan)) not in _BEGINS_VALUE:
        raise Malformed
    pieces: list[str] = []
    depth, in_string, ends = 0, False, False
    is_scalar = scan.text[scan.pos] not in '{["'
    while not ends:
        begin, text = scan.pos, scan.text
        place = begin
        while place < len(text):
            if is_scalar:
                found = _AFTER_SCALAR.search(text, place)
            else:
                found = (_IN_STRING if in_string else _OUTSIDE).search(text, place)
            if found is None:
                place = len(text)
                break
            char, place = found[0], found.start()
            if is_scalar:
                ends = True
                break
            if char == "\\":
                # What it escapes is part of the same step.
                if place + 1 == len(text):
                    break
                place += 2
                continue
            place += 1
            if char == '"':
                in_string = not in_string
                ends = not in_string and not depth
            else:
                depth += 1 if char in "{[" else -1
                ends = not depth
            if ends:
                break
        scan.pos = place
        if place > begin:
            if emit is None:
                pieces.append(text[begin:place])
            else:
                yield emit(text[begin:place])
        if not ends:
            if scan.ended:
                if is_scalar:
                    break
                if place < len(text) and emit is not None:
                    scan.pos = len(text)
                    yield emit(text[place:])
                raise Malformed
            yield WAIT
    return "".join(pieces)
