"""The white space that a request wants between the tokens of JSON, where it says so itself."""

from __future__ import annotations

import re
from collections.abc import Callable

# A slash ends a pattern in Lark's syntax, unless it is escaped.
_ESCAPED_OR_SLASH = re.compile(r"(\\.)|/", re.DOTALL)


def lark_pattern(pattern: str) -> str:
    """A regular expression as Lark's syntax writes it."""
    return "/" + _ESCAPED_OR_SLASH.sub(lambda match: match[1] or "\\/", pattern).replace("\n", "\\n") + "/"


def cannot_be_followed(pattern: str, may_be_empty: Callable[[str], bool], has_answer: Callable[[str], bool]) -> str:
    """Why JSON cannot have ``pattern``, a regular expression that is valid, between its tokens; empty if it can.

    Args:
        may_be_empty: whether a regular expression matches the empty text.
        has_answer: whether a grammar in Lark's syntax has any answer.
    """
    # The library takes it for what may be left out everywhere.
    if not may_be_empty(pattern):
        return f"must match the empty text, too: {pattern!r} would demand white space"
    other = f"start: OTHER\nOTHER: {lark_pattern(f'(?:{pattern})')} & /(?s:.*)[^ \\t\\r\\n](?s:.*)/"
    if has_answer(other):
        return "must match nothing but what JSON takes for white space, which is [ \\t\\r\\n]"
    return ""
