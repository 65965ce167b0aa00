"""``<|tool_call|>[{"name": …, "arguments": {…}}, …]``: Granite 3."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import CallWriter, marked_calls
from deployments.parsers.scanning.scanner import Scanner, Steps
from deployments.parsers.tools.json_calls import read_calls

BEGINS = ("<|tool_call|>", "<tool_call>")


def granite(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer of these models."""

    def body(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
        yield from read_calls(scan, calls)

    yield from marked_calls(scan, calls, BEGINS, "", body)
