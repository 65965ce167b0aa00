"""``<tool_call>{"name": …, "arguments": {…}}</tool_call>``: Hermes, Qwen 2.5 and 3, ERNIE 4.5."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import CallWriter, marked_calls
from deployments.parsers.scanning.scanner import Scanner, Steps
from deployments.parsers.tools.json_calls import read_calls

BEGIN, END = "<tool_call>", "</tool_call>"


def hermes(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer of these models."""

    def body(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
        yield from read_calls(scan, calls)

    yield from marked_calls(scan, calls, [BEGIN], END, body)
