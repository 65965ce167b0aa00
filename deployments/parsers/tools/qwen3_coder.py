"""``<tool_call><function=name><parameter=key>value</parameter></function></tool_call>``: Qwen3-Coder."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import CallWriter, marked_calls
from deployments.parsers.scanning.scanner import Malformed, Scanner, Steps, goes_on, skip_space, text_until
from deployments.parsers.tools.argument_list import ArgumentList, Functions

BEGIN, END, FUNCTION, PARAMETER = "<tool_call>", "</tool_call>", "<function=", "<parameter="
FUNCTION_END, PARAMETER_END = "</function>", "</parameter>"


def qwen3_coder(scan: Scanner, calls: CallWriter, functions: Functions) -> Steps[None]:
    """An answer of these models, which leave the outer tag out at times."""

    def body(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
        if begin == BEGIN:
            yield from skip_space(scan)
            if not (yield from goes_on(scan, [FUNCTION])):
                raise Malformed
        name, _ = yield from text_until(scan, [">"])
        yield calls.begin(name.strip())
        arguments = ArgumentList(calls, functions.get(name.strip(), {}))
        while True:
            yield from skip_space(scan)
            tag = yield from goes_on(scan, [PARAMETER, FUNCTION_END])
            if tag != PARAMETER:
                break
            key, _ = yield from text_until(scan, [">"])
            # The lines' ends between tags and value are no part of it.
            yield from goes_on(scan, ["\n"])
            yield from arguments.read(scan, key.strip(), ["\n" + PARAMETER_END, PARAMETER_END])
        if not tag:
            raise Malformed
        yield arguments.end()
        yield calls.end()

    yield from marked_calls(scan, calls, [BEGIN, FUNCTION], END, body)
