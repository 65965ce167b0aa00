"""Characters that JSON writes by their numbers, for what looks through the text of a grammar without parsing it."""

from __future__ import annotations

import re
from collections.abc import Callable

_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def unescaped(text: str, written: Callable[[str], str] = lambda char: char) -> str:
    """``text`` with what ``written`` makes of each character that stood there as a number."""
    return _ESCAPED.sub(lambda match: written(chr(int(match[1], 16))), text)
