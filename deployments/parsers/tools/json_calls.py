"""Calls as JSON objects that name a function and its arguments, alone or in a list."""

from __future__ import annotations

import json

from deployments.parsers.scanning.call_writer import CallWriter
from deployments.parsers.scanning.scanner import (
    Malformed,
    Scanner,
    Steps,
    goes_on,
    json_string,
    peek,
    raw_value,
    rest,
    skip_space,
)

ARGUMENTS = ("arguments", "parameters")


def read_call(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """One object; other keys than name and arguments are passed. An object around it under ``function`` is passed, too.

    Raises:
        Malformed: it is none, or its text ends.
    """
    begun, written = yield from _read_object(scan, calls)
    if not begun:
        raise Malformed
    if not written:
        yield calls.arguments("{}")
    yield calls.end()


def _read_object(scan: Scanner, calls: CallWriter) -> Steps[tuple[bool, bool]]:
    """Whether the object named a function, and whether it had arguments."""
    if not (yield from goes_on(scan, ["{"])):
        raise Malformed
    begun, written = False, False
    early: str | None = None
    while (char := (yield from skip_space(scan))) != "}":
        if char == ",":
            scan.pos += 1
            continue
        key = yield from json_string(scan)
        yield from skip_space(scan)
        if not (yield from goes_on(scan, [":"])):
            raise Malformed
        char = yield from skip_space(scan)
        if key == "function" and char == "{" and not begun:
            begun, written = yield from _read_object(scan, calls)
        elif key == "name" and not begun:
            name = yield from json_string(scan)
            begun = True
            yield calls.begin(name)
            if early is not None:
                written = True
                yield calls.arguments(_as_object(early))
        elif key in ARGUMENTS and not written:
            if begun and char == "{":
                written = True
                yield from raw_value(scan, calls.arguments)
            elif begun:
                written = True
                yield calls.arguments(_as_object((yield from raw_value(scan))))
            else:
                early = yield from raw_value(scan)
        else:
            yield from raw_value(scan)
    scan.pos += 1
    return begun, written


def _as_object(raw: str) -> str:
    """Some models write the object as a string, and null where there are no arguments."""
    if raw.startswith('"'):
        try:
            return json.loads(raw, strict=False) or "{}"
        except ValueError:
            return raw
    return "{}" if raw == "null" else raw


def read_calls(scan: Scanner, calls: CallWriter, separators: tuple[str, ...] = (",",)) -> Steps[None]:
    """One object, objects with ``separators`` between them, or a list of them.

    Raises:
        Malformed: there is none, or the text ends in one.
    """
    in_list = (yield from skip_space(scan)) == "["
    if in_list:
        scan.pos += 1
        if (yield from skip_space(scan)) == "]":
            scan.pos += 1
            return
    while True:
        yield from skip_space(scan)
        yield from read_call(scan, calls)
        yield from skip_space(scan)
        if not (yield from goes_on(scan, separators)):
            break
    if in_list and (yield from peek(scan)) == "]":
        scan.pos += 1


def calls_from_the_beginning(scan: Scanner, calls: CallWriter, openings: tuple[str, ...] = ()) -> Steps[None]:
    """An answer that is calls from its beginning on, behind one of ``openings`` or none; else it is content, as is what
    follows."""
    scan.keep()
    yield from skip_space(scan)
    if openings:
        yield from goes_on(scan, openings)
    try:
        yield from read_calls(scan, calls, (";", ","))
    except Malformed:
        if not calls.count:
            scan.rewind()
            yield from rest(scan, calls.content)
        elif calls.is_open:
            yield from rest(scan, calls.arguments)
    scan.forget()
    yield from rest(scan, calls.content)
