"""``[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`` of older Mistral models, ``[TOOL_CALLS]name[ARGS]{…}`` of newer ones."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import CallWriter, marked_calls
from deployments.parsers.scanning.scanner import Scanner, Steps, raw_value, skip_space, text_until
from deployments.parsers.tools.json_calls import read_calls

BEGIN = "[TOOL_CALLS]"


def mistral(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer of these models."""
    yield from marked_calls(scan, calls, [BEGIN], "", _body)


def _body(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
    if (yield from skip_space(scan)) in ("[", "{"):
        yield from read_calls(scan, calls)
        return
    name, marker = yield from text_until(scan, ["[CALL_ID]", "[ARGS]", "{"])
    yield calls.begin(name.strip())
    if marker == "[CALL_ID]":
        # Ids are the server's own.
        _, marker = yield from text_until(scan, ["[ARGS]", "{"])
    if marker == "{":
        scan.pos -= 1
    else:
        yield from skip_space(scan)
    yield from raw_value(scan, calls.arguments)
    yield calls.end()
