"""What is wrong with a value, in words of JSON: of a request's field, of a setting."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cluster.api_errors import MAX_SHOWN, shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_FEWEST_BEGUN = 6  # signs of a name that is only begun

# Kind of a validation error to its sentence, with the names of what that kind tells.
_SENTENCES = {
    "missing": "is required",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "invalid_key"), "must be a string"),
    "list_type": "must be a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type", "dataclass_type"), "must be an object"),
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be at most 256 visible ASCII characters without spaces",
    "string_unicode": "must be valid Unicode",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
}


def sentence(kind: str, context: Mapping[str, Any], own: str) -> str:
    """What a validation error of ``kind`` says; ``own`` is the sentence of kinds that this project made."""
    text = _SENTENCES.get(kind)
    if text is None:
        return own if kind in OWN_KINDS else "is not a value that this field may have"
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    if "expected" in context:
        values["expected"] = str(context.get("expected", "")).replace("'", '"')
    text = text.format_map(values)
    return text.replace("least 1 characters", "least 1 character").replace("least 1 items", "least 1 item")


OWN_KINDS = frozenset({"field_value"})


def has_sentence(kind: str) -> bool:
    """Whether ``setting_fault`` has a sentence of its own for a validation error of ``kind``, or knows the validator's."""
    return kind in _SENTENCES or kind == "value_error"


def setting_fault(fault: ErrorDetails, is_secret: bool = False) -> str:
    """What is wrong with a setting, and what it was: all that is said behind its name.

    Args:
        fault: of pydantic, or of a validator that raised ValueError with a sentence of its own.
        is_secret: its value is not shown.
    """
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind in OWN_KINDS:
        return fault["msg"]
    said = sentence(kind, context, fault["msg"])
    return said if is_secret or kind == "missing" else f"{said}, got {shown(fault['input'])}"


def setting_name(path: Iterable[int | str]) -> str:
    """Of a setting, or of what stands in it. A key that is none of a mapping's is said to be so of the mapping."""
    return ".".join(field_name(part) for part in path if part != "[key]")


def field_name(name: Any) -> str:
    """A field's name in an error's path."""
    text = str(name)[:MAX_SHOWN]
    return text if text.isprintable() else json.dumps(text)[1:-1]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that somebody may have meant: one that is near, or the only one that begins with all these words.

    Names that have much in common but for one word are different things.
    """
    if len(name) > MAX_SHOWN:
        return None
    by_lower = {one.lower(): one for one in known}
    typed = name.lower()
    for found in difflib.get_close_matches(typed, by_lower, n=3, cutoff=0.75):
        if _ratio(typed, found) >= 0.9 or _words_are_near(typed, found):
            return by_lower[found]
    begun = [one for lower, one in by_lower.items() if re.match(re.escape(typed) + r"[^a-z0-9]", lower)]
    return begun[0] if len(begun) == 1 and len(typed) >= _FEWEST_BEGUN else None


def _words_are_near(typed: str, found: str) -> bool:
    words, others = (re.findall(r"[a-z0-9]+", one) for one in (typed, found))
    return all(any(_ratio(word, other) >= 0.6 for other in others) for word in words)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
