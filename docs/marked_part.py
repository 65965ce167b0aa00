"""A part of a page that a script writes, between two markers which stay."""

from __future__ import annotations


def with_part(page: str, start: str, end: str, part: str) -> str:
    """``page`` with ``part`` between ``start`` and ``end``."""
    before, rest = page.split(start, 1)
    _, after = rest.split(end, 1)
    return f"{before}{start}\n{part}\n{end}{after}"
