"""Bounds ``multipleOf`` of JSON schemas: the grammar library builds a state a remainder, and no limit of it counts them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from actors.structured_output.json_escapes import unescaped

# A state a remainder, in all of a schema: 10,000 take 0.05 s of a core to build, and 5 * 10^9 what memory there is.
MOST_REMAINDERS = 10_000
# What a zero at a number's end costs, in states for each remainder that is left without factors of ten and their divisors: 9973
# takes 0.05 s, 99730 0.7, 9973000 4.3.
_STATES_OF_A_ZERO = 5
_MULTIPLE_OF = re.compile(r'"multipleOf"\s*:\s*(-?[0-9][0-9.eE+-]*)')
# Of an exponent; what is longer has no remainder that fits into any limit, or none at all.
_MOST_DIGITS = 400


def too_fine_multiple(text: str) -> str | None:
    """The first ``multipleOf`` in ``text``, JSON or with JSON in it, that has too many remainders together with those before it;
    None without one."""
    known: set[str] = set()
    states = 0
    for number in (match[1] for match in _MULTIPLE_OF.finditer(unescaped(text))):
        if number not in known:
            known.add(number)
            states += _num_states(number)
            if states > MOST_REMAINDERS:
                return number
    return None


def _num_states(number: str) -> int:
    """About how many the library builds."""
    try:
        _sign, digits, exponent = Decimal(number).as_tuple()
    except InvalidOperation:
        return 0  # no number: the library says so
    if not isinstance(exponent, int) or len(digits) + abs(exponent) > _MOST_DIGITS:
        return MOST_REMAINDERS + 1
    remainders, zeros = int("".join(map(str, digits))), max(exponent, 0)
    while remainders and remainders % 10 == 0:
        remainders, zeros = remainders // 10, zeros + 1
    rest = remainders
    for prime in (2, 5):
        while rest and rest % prime == 0:
            rest //= prime
    # Without a rest the last digits say it, however many zeros there are.
    return remainders + (_STATES_OF_A_ZERO * zeros * rest if rest > 1 else 0)
