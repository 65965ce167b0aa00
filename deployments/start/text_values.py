"""Values of settings as they are typed: JSON, and vLLM's short forms of whole numbers."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

_POWERS = "kmgt"


def decoded(text: str) -> Any:
    """The JSON value that a text stands for; the text, if it stands for none."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def short_number(text: str) -> int | None:
    """``8k`` is 8,000 and ``8K`` 8,192, also with m, g, t; ``25.6k`` is 25,600. None if it is no whole number in this form."""
    form = re.fullmatch(r"([0-9]{1,15})(\.[0-9]{1,15})?([kmgtKMGT])", text)
    if form is None:
        return None
    digits, fraction, unit = form.groups()
    power = _POWERS.index(unit.lower()) + 1
    if unit.isupper():
        return int(digits) << 10 * power if fraction is None else None
    number = Decimal(digits + (fraction or "")) * 1000**power
    return int(number) if number == int(number) else None
