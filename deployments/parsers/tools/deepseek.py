"""Calls of DeepSeek V3 and R1, whose arguments stand in a block of code, and of V3.1, where they do not."""

from __future__ import annotations

from deployments.parsers.scanning.call_writer import Body, CallWriter, marked_calls
from deployments.parsers.scanning.scanner import Malformed, Scanner, Steps, goes_on, raw_value, skip_space, text_until

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def deepseek_v3(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer of DeepSeek V3 or R1."""
    yield from marked_calls(scan, calls, [CALLS_BEGIN], CALLS_END, _listed(_in_code))


def deepseek_v31(scan: Scanner, calls: CallWriter) -> Steps[None]:
    """An answer of DeepSeek V3.1."""
    yield from marked_calls(scan, calls, [CALLS_BEGIN], CALLS_END, _listed(_plain))


def _listed(call: Body) -> Body:
    def body(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
        first = True
        while True:
            yield from skip_space(scan)
            if not (yield from goes_on(scan, [CALL_BEGIN])):
                if first:
                    raise Malformed
                return
            first = False
            yield from call(scan, calls, begin)

    return body


def _in_code(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
    yield from text_until(scan, [SEPARATOR])
    name, _ = yield from text_until(scan, ["\n"])
    yield calls.begin(name.strip())
    yield from skip_space(scan)
    yield from goes_on(scan, ["```json"])
    yield from _arguments(scan, calls)


def _plain(scan: Scanner, calls: CallWriter, begin: str) -> Steps[None]:
    name, _ = yield from text_until(scan, [SEPARATOR])
    yield calls.begin(name.strip())
    yield from _arguments(scan, calls)


def _arguments(scan: Scanner, calls: CallWriter) -> Steps[None]:
    yield from skip_space(scan)
    yield from raw_value(scan, calls.arguments)
    yield calls.end()
    yield from text_until(scan, [CALL_END])
