"""``{"name": …, "parameters": {…}}`` and nothing else: Llama 3, and what a grammar makes of any model."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import CallWriter
from deployments.parsers.scanning.scanner import Scanner, Steps
from deployments.parsers.tools.json_calls import calls_from_the_beginning

PYTHON_TAG = "<|python_tag|>"


def llama3_json(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer of Llama 3.1, 3.2 or 4: objects with semicolons between them."""
    yield from calls_from_the_beginning(scan, calls, (PYTHON_TAG,))


def bare_json(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer that is one object or a list of them."""
    yield from calls_from_the_beginning(scan, calls)
