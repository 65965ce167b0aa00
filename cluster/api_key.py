"""What an API key looks like."""

from __future__ import annotations


def is_api_key(key: str) -> bool:
    """Whether an Authorization header can carry ``key`` as one word: visible ASCII, at least one character."""
    return bool(key) and all("!" <= char <= "~" for char in key)
