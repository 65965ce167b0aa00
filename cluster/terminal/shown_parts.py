"""Chunks of an answer as a person reads them: what the model thinks and which tools it calls are told from what it says."""

from __future__ import annotations

from cluster.client.api_types import Answer

_REASONING, _CALL, _CONTENT = "thinking", "call", ""


class ShownParts:
    """Puts a heading where the kind of text changes; an answer of content alone has none."""

    def __init__(self) -> None:
        self._kind = ""
        self._call = -1
        self._has_text = False

    def text(self, chunk: Answer) -> str:
        """What to show of a chunk, of its first choice."""
        if not chunk.choices:
            return ""
        choice, shown = chunk.choices[0], []
        if choice.reasoning:
            shown += [self._begin(_REASONING, "[thinking] "), choice.reasoning]
        if choice.text:
            shown += [self._begin(_CONTENT, ""), choice.text]
        for call in choice.tool_calls:
            if call.index != self._call:
                self._kind, self._call = "", call.index
                shown.append(self._begin(_CALL, f"[call] {call.name} "))
            shown.append(call.arguments)
        self._has_text = self._has_text or any(shown)
        return "".join(shown)

    def _begin(self, kind: str, heading: str) -> str:
        if kind == self._kind:
            return ""
        has_text = self._has_text or bool(self._kind)
        self._kind, self._has_text = kind, True
        return ("\n\n" if has_text else "") + heading
