"""Bounds ``multipleOf`` of JSON schemas: the grammar library builds a state a remainder, and no limit of it counts them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

# A state a remainder: 100,000 take a second to build, and 5 * 10^9 what memory there is.
MOST_REMAINDERS = 10_000
_MULTIPLE_OF = re.compile(r'"multipleOf"\s*:\s*(-?[0-9][0-9.eE+-]*)')
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
# Of an exponent; what is longer has no remainder that fits into any limit, or none at all.
_MOST_DIGITS = 400


def too_fine_multiple(text: str) -> str | None:
    """The first ``multipleOf`` in ``text``, JSON or with JSON in it, that has too many remainders; None without one."""
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    return next((match[1] for match in _MULTIPLE_OF.finditer(plain) if not _is_bounded(match[1])), None)


def _is_bounded(number: str) -> bool:
    try:
        _sign, digits, exponent = Decimal(number).as_tuple()
    except InvalidOperation:
        return True  # no number: the library says so
    if not isinstance(exponent, int) or len(digits) + abs(exponent) > _MOST_DIGITS:
        return False
    # Factors of ten and their divisors are seen in the last digits alone.
    remainders = int("".join(map(str, digits)))
    for prime in (2, 5):
        while remainders and remainders % prime == 0:
            remainders //= prime
    return remainders <= MOST_REMAINDERS
