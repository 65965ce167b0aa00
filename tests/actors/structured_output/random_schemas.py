"""Random JSON schemas whose values are short, so that answers of random weights end."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_NAMES = ["a", "b", "ab", "true", "x y", 'q"']
_LEAVES: list[st.SearchStrategy[dict[str, Any]]] = [
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": 12}, {"const": "ab"}]),
    st.lists(st.sampled_from(["a", "ab", 'q"', 1, None, True, "0"]), min_size=1, max_size=4, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
    st.integers(0, 20).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 30}),
    st.integers(0, 3).map(lambda n: {"type": "string", "minLength": n, "maxLength": n + 2}),
    st.sampled_from(["[ab]{1,3}", "0+1?", "(ab|12)x"]).map(lambda p: {"type": "string", "pattern": f"^{p}$", "maxLength": 5}),
]  # fmt: skip


def _objects(inner: st.SearchStrategy) -> st.SearchStrategy:
    def make(properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
        names = sorted(name for name in properties if name in required)
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}

    return st.builds(
        make, st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3), st.sets(st.sampled_from(_NAMES))
    )


def _arrays(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Objects, arrays, alternatives and definitions over plain values."""
    parts = st.recursive(
        st.one_of(_LEAVES),
        lambda inner: st.one_of(
            _objects(inner), _arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
        ),
        max_leaves=6,
    )
    referred = parts.map(
        lambda part: {"$defs": {"p": part}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 2}
    )
    return st.one_of(parts, referred)
