"""``<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>``: GLM 4.5."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import CallWriter, marked_calls
from deployments.parsers.scanning.scanner import Malformed, Scanner, Steps, goes_on, skip_space, text_until
from deployments.parsers.tools.argument_list import ArgumentList, Functions

BEGIN, END = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


def glm45(scan: Scanner, calls: CallWriter, functions: Functions) -> Steps[None]:
    """An answer of these models."""

    def body(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
        yield from skip_space(scan)
        name, tag = yield from text_until(scan, ["\n", KEY, END])
        yield calls.begin(name.strip())
        arguments = ArgumentList(calls, functions.get(name.strip(), {}))
        while tag != END:
            if tag != KEY:
                yield from skip_space(scan)
                tag = yield from goes_on(scan, [KEY, END])
                if not tag:
                    raise Malformed
                continue
            key, _ = yield from text_until(scan, [KEY_END])
            yield from skip_space(scan)
            if not (yield from goes_on(scan, [VALUE])):
                raise Malformed
            yield from arguments.read(scan, key.strip(), [VALUE_END])
            tag = ""
        yield arguments.end()
        yield calls.end()
        # ``marked_calls`` looks for it.
        scan.pos -= len(END)

    yield from marked_calls(scan, calls, [BEGIN], END, body)
