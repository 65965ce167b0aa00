"""``[name(key=value), …]``: calls as Python writes them, of Llama 4, Llama 3.2 and others."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from typing import Any

from deployments.parsers.scanning.call_writer import CallWriter
from deployments.parsers.scanning.scanner import WAIT, Malformed, Scanner, Steps, goes_on, rest, skip_space, text_until

_OPENINGS = ("<|python_start|>", "<|python_tag|>")
_ENDS = ("<|python_end|>",)
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_LOOKED_AT = re.compile(r"""[()\[\]{}"'\\]""")
_WORDS = {"true": True, "false": False, "null": None}
# Python's own parser takes a few microseconds a character.
_MAX_CALL_CHARS = 2**16


def pythonic(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer that is a list of calls, or none. A call goes out once it is complete: only then it is known to be one."""
    scan.keep()
    yield from skip_space(scan)
    yield from goes_on(scan, _OPENINGS)
    yield from skip_space(scan)
    try:
        if not (yield from goes_on(scan, ["["])):
            raise Malformed
        while (char := (yield from skip_space(scan))) != "]":
            if char == ",":
                scan.pos += 1
                continue
            # What is no call is content from here on.
            if calls.count:
                scan.keep()
            name, _ = yield from text_until(scan, ["("])
            if not _NAME.fullmatch(name):
                raise Malformed
            arguments = _arguments(f"f({(yield from _to_close(scan))}")
            yield calls.begin(name)
            yield calls.arguments(arguments)
            yield calls.end()
        scan.pos += 1
        scan.forget()
        yield from goes_on(scan, _ENDS)
    except Malformed:
        scan.rewind()
    yield from rest(scan, calls.content)


def _to_close(scan: Scanner) -> Steps[str]:
    """Text up to and with the bracket that closes one which was passed."""
    pieces: list[str] = []
    depth, quote, length = 1, "", 0
    while depth:
        begin = place = scan.pos
        while (found := _LOOKED_AT.search(scan.text, place)) is not None:
            char, place = found[0], found.end()
            if char == "\\":
                if place == len(scan.text):
                    place -= 1
                    break
                place += 1
            elif quote:
                quote = "" if char == quote else quote
            elif char in "\"'":
                quote = char
            else:
                depth += 1 if char in "([{" else -1
                if not depth:
                    break
        else:
            place = len(scan.text)
        scan.pos = place
        pieces.append(scan.text[begin:place])
        length += place - begin
        if length > _MAX_CALL_CHARS or (scan.ended and depth):
            raise Malformed
        if depth:
            yield WAIT
    return "".join(pieces)


def _arguments(call: str) -> str:
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            raise Malformed
        values = {word.arg: _value(word.value) for word in tree.keywords}
        if None in values:
            raise Malformed
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise Malformed from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        # A key of None is ** of another one.
        return {ast.literal_eval(key): _value(item) for key, item in zip(node.keys, node.values) if key is not None}
    value = ast.literal_eval(node)
    # JSON has no infinity, which a number of a model may be in Python.
    return math.copysign(sys.float_info.max, value) if isinstance(value, float) and math.isinf(value) else value
