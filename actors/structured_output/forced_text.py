"""Bounds the work for text that a grammar forces: the library cuts all that is left of it into tokens at every token."""

from __future__ import annotations

import json
import re

from actors.structured_output.json_escapes import unescaped

# 13 ms of a core where it begins, 5 ms a token behind that.
MOST_FORCED_CHARS = 8192
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\\n]|\\.)*/', re.DOTALL)
# Of what stands in brackets, or is repeated already, each time is as long as all before.
_COUNT = re.compile(r"([)}]?)\{(\d+)")
_NOT_FORCED = '%llguidance {"no_forcing": true}\n'
# How an error begins to say where it is, and shows a line.
_PLACE = re.compile(r"^(\s*(?:at )?)(\d+)(\(\d+\)| \|)")
_SHOWN_LINE = re.compile(r"^\s*(\d+) \|")


def may_force_much(source: str) -> bool:
    """Whether one text in a grammar in the library's form, or one pattern, may be longer than is allowed where it has to come."""
    # No text ends where an escaped quote stands.
    plain = unescaped(source, _within_a_text)
    return any(_most_forced(match[0]) > MOST_FORCED_CHARS for match in _TEXT.finditer(plain))


def without_forcing(source: str) -> str:
    """The same grammar, whose forced text may come in any tokens that write it: that costs nothing. In Lark's syntax."""
    if source.startswith("{"):
        (grammar,) = json.loads(source)["grammars"]
        schema, source = grammar["json_schema"], grammar["lark_grammar"]
        if source is None:
            source = f"start: %json {json.dumps(schema)}"
    return f"{_NOT_FORCED}{source}\n{_NOT_FORCED}"


def placed_as_written(error: str, source: str) -> str:
    """What the library says of ``source``, with the lines of the grammar that ``without_forcing`` may have made it of."""
    if not source.startswith(_NOT_FORCED):
        return error
    last = source.count("\n") - 2

    def as_written(found: re.Match[str]) -> str:
        return f"{found[1]}{min(last, max(1, int(found[2]) - 1))}{found[3]}"

    # Of the lines shown, those that were put around the grammar are the first and what comes behind its last one.
    return "\n".join(
        _PLACE.sub(as_written, line)
        for line in error.splitlines()
        if not (shown := _SHOWN_LINE.match(line)) or 1 < int(shown[1]) <= last + 1
    )


def _within_a_text(char: str) -> str:
    return "x" if char in '"\\/\n' else char


def _most_forced(text: str) -> int:
    """Characters that a pattern can ask for; where ``text`` is none, more than it has."""
    once, times = len(text), 1
    for behind, count in _COUNT.findall(text):
        number = int(count[:9])
        if behind:
            times *= max(1, number)
        else:
            once += number
    return once * times
