"""What a person sees of thinking and calls."""

from __future__ import annotations

from cluster.client.api_types import Answer
from cluster.terminal.shown_parts import ShownParts


def shown(*deltas: dict) -> str:
    parts = ShownParts()
    chunks = [
        Answer.parse({"id": "a", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        for delta in deltas
    ]
    return "".join(map(parts.text, chunks))


def call(index: int, arguments: str, name: str | None = None) -> dict:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"tool_calls": [{"index": index, "function": function, **({"id": "i"} if name else {})}]}


def test_headings_stand_where_the_kind_of_text_changes():
    assert shown({"role": "assistant", "content": ""}, {"content": "a"}, {"content": " b"}) == "a b"
    assert shown({"reasoning": "hm"}, {"reasoning": "."}, {"content": "a"}) == "[thinking] hm.\n\na"
    text = shown({"content": "a"}, call(0, "", "f"), call(0, '{"x"'), call(0, ": 1}"), call(1, "{}", "f"))
    assert text == 'a\n\n[call] f {"x": 1}\n\n[call] f {}'
    assert shown(call(0, "{}", "f")) == "[call] f {}"
