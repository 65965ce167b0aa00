"""What a parser finds, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from deployments.parsers.answer_parser import AnswerFormat, AnswerParser
from deployments.parsers.scanning.events import CallArguments, CallBegin, CallEnd, Content, Event, Reasoning
from deployments.parsers.tool_formats import TOOL_FORMATS


class Found(NamedTuple):
    """Calls are (name, arguments, whether they are complete)."""

    content: str = ""
    calls: tuple[tuple[str, str, bool], ...] = ()
    reasoning: str = ""


def joined(events: Iterable[Event]) -> Found:
    """All pieces of a kind together; calls have to come in their order, one name each."""
    content, reasoning, calls = [], [], []
    for event in events:
        if isinstance(event, Content):
            content.append(event.text)
        elif isinstance(event, Reasoning):
            reasoning.append(event.text)
        elif isinstance(event, CallBegin):
            assert event.call == len(calls)
            calls.append([event.name, "", False])
        elif isinstance(event, CallArguments):
            assert event.call == len(calls) - 1 and not calls[-1][2] and event.text
            calls[-1][1] += event.text
        else:
            assert isinstance(event, CallEnd) and event.call == len(calls) - 1
            calls[-1][2] = True
    return Found("".join(content), tuple((name, text, done) for name, text, done in calls), "".join(reasoning))


def found(pieces: Iterable[str], form: AnswerFormat) -> Found:
    """Of a text in pieces."""
    parser = AnswerParser(form)
    events = [event for piece in pieces for event in parser.push(piece)]
    return joined(events + parser.finish())


def tools(name: str, **functions) -> AnswerFormat:
    """Answers of a family; functions have their parameters' schemas."""
    return AnswerFormat(tools=TOOL_FORMATS[name], functions=functions)
