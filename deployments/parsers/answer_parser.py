"""One answer, from its text as it comes to what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from deployments.parsers.reasoning import ReasoningFormat, read_reasoning
from deployments.parsers.scanning.call_writer import CallWriter
from deployments.parsers.scanning.events import CallEnd, Content, Event
from deployments.parsers.scanning.scanner import Scanner, Steps, Wait, rest
from deployments.parsers.tool_formats import ToolFormat
from deployments.parsers.tools.argument_list import Functions


@dataclass(frozen=True)
class AnswerFormat:
    """What may be in an answer.

    Attributes:
        reasoning: how the model reasons; None if nothing is looked for.
        begins_in_reasoning: as ``ReasoningFormat.begins_in`` says of the prompt.
        tools: how the model calls; None if nothing is looked for.
        functions: parameters of the tools that it has, by name.
    """

    reasoning: ReasoningFormat | None = None
    begins_in_reasoning: bool | None = None
    tools: ToolFormat | None = None
    functions: Functions = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """All of an answer is content."""
        return self.reasoning is None and self.tools is None


PLAIN = AnswerFormat()


class AnswerParser:
    """Reads one answer. What it finds depends on the text alone, and not on how that was cut into pieces."""

    def __init__(self, form: AnswerFormat) -> None:
        self._scan = Scanner()
        self._steps = _read(self._scan, form)

    def push(self, text: str) -> list[Event]:
        """Take in more text; what it settles."""
        self._scan.feed(text)
        return list(self._run())

    def unread_behind_call(self, text: str) -> int | None:
        """Take in more text up to the end of a call; how many characters of it come behind that. None: all was read, and no call
        ended."""
        self._scan.feed(text)
        for event in self._run():
            if isinstance(event, CallEnd):
                return len(self._scan.text) - self._scan.pos
        return None

    def finish(self) -> list[Event]:
        """The text is over; what was held back."""
        self._scan.ended = True
        return list(self._run())

    def _run(self) -> Iterator[Event]:
        for event in self._steps:
            if isinstance(event, Wait):
                return
            if event is not None:
                yield event


def _read(scan: Scanner, form: AnswerFormat) -> Steps[None]:
    if form.reasoning is not None:
        yield from read_reasoning(scan, form.reasoning, form.begins_in_reasoning)
    if form.tools is None:
        yield from rest(scan, Content)
        return
    calls = CallWriter(scan)
    yield from form.tools.read(scan, calls, form.functions)
    yield calls.end_of_text()
