"""What was found in the text of one choice of a chat, in OpenAI's shape: content, reasoning and calls, whole or as deltas."""

from __future__ import annotations

import hashlib
from typing import Any

from deployments.parsers.answer_parser import AnswerFormat, AnswerParser
from deployments.parsers.scanning.events import CallArguments, CallBegin, Content, Event, Reasoning

_ID_CHARS = 24


class MessageParts:
    """Reads one choice.

    Args:
        answer_id: calls are named after it, so that an answer that is taken up names them alike.
        index: of the choice.
        with_reasoning: whether the client wants the reasoning.
    """

    def __init__(self, form: AnswerFormat, answer_id: str, index: int, with_reasoning: bool) -> None:
        self._form = form
        self._parser = AnswerParser(form)
        self._name = f"{answer_id}.{index}"
        self._with_reasoning = with_reasoning
        self.num_calls = 0

    def delta(self, text: str, ends: bool) -> dict[str, Any]:
        """What the next piece of text brings, and what was held back where the answer ``ends``."""
        return self._delta(self._read(text, ends))

    def message(self, text: str) -> dict[str, Any]:
        """The whole of it, of which nothing was read before."""
        found = self._delta(self._read(text, ends=True))
        calls = [{name: call[name] for name in ("id", "type", "function")} for call in found.get("tool_calls", ())]
        return self.parts(found.get("content"), calls, found.get("reasoning_content"))

    def parts(self, content: str | None, calls: list[dict[str, Any]], reasoning: str | None) -> dict[str, Any]:
        """The fields of a message with these; content is none only beside others."""
        message: dict[str, Any] = {"content": content or (None if calls or reasoning else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if self._form.reasoning is not None and self._with_reasoning:
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        return message

    def _read(self, text: str, ends: bool) -> list[Event]:
        events = self._parser.push(text)
        return events + self._parser.finish() if ends else events

    def _delta(self, events: list[Event]) -> dict[str, Any]:
        content, reasoning = [], []
        calls: dict[int, dict[str, Any]] = {}
        for event in events:
            if isinstance(event, Content):
                content.append(event.text)
            elif isinstance(event, Reasoning):
                reasoning.append(event.text)
            elif isinstance(event, CallBegin):
                self.num_calls += 1
                function = {"name": event.name, "arguments": ""}
                calls[event.call] = {
                    "index": event.call,
                    "id": self._call_id(event.call),
                    "type": "function",
                    "function": function,
                }
            elif isinstance(event, CallArguments):
                call = calls.setdefault(event.call, {"index": event.call, "function": {"arguments": ""}})
                call["function"]["arguments"] += event.text
        delta: dict[str, Any] = {}
        if reasoning and self._with_reasoning:
            delta["reasoning_content"] = delta["reasoning"] = "".join(reasoning)
        if content:
            delta["content"] = "".join(content)
        if calls:
            delta["tool_calls"] = list(calls.values())
        return delta

    def _call_id(self, call: int) -> str:
        digest = hashlib.blake2s(f"{self._name}.{call}".encode()).hexdigest()
        length = self._form.tools.id_chars if self._form.tools is not None else None
        return f"call_{digest[:_ID_CHARS]}" if length is None else digest[:length]
