"""Reasoning before answers, and which parsers templates want."""

from __future__ import annotations

import pytest

from deployments.parsers.answer_parser import AnswerFormat
from deployments.parsers.from_template import reasoning_parser_of, tool_parser_of
from deployments.parsers.reasoning import FORMATS
from deployments.parsers.tool_formats import TOOL_FORMATS
from tests.deployments.parsers.found import Found, found

OPEN, CLOSED, LATER = "<|assistant|>\n<think>\n", "<think>\n\n</think>\n\n", "<|assistant|>\n"
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'

WRITTEN = [
    ("qwen3", LATER, "<think>\nLet me see.\n</think>\n\nFour.", Found("Four.", (), "Let me see.")),
    ("qwen3", OPEN, "Let me\n\nsee.\n</think>\n\nFour.\n", Found("Four.\n", (), "Let me\n\nsee.")),
    ("qwen3", CLOSED, "Four </think> five", Found("Four </think> five")),
    ("qwen3", LATER, "Four, <think>five</think>", Found("Four, <think>five</think>")),
    ("qwen3", LATER, "\n<think>\nnever ends", Found("", (), "never ends")),
    ("qwen3", LATER, "<think>\n\n</think>\n\nFour", Found("Four")),
    ("qwen3", LATER, f"<think>a</think>\n\n{CALL}", Found("", (("f", "{}", True),), "a")),
    ("deepseek_r1", LATER, "Let me see.</think>Four", Found("Four", (), "Let me see.")),
    ("deepseek_r1", LATER, "<think>Let me see.", Found("", (), "Let me see.")),
    ("deepseek_r1", CLOSED, "Four", Found("Four")),
    ("ernie45", OPEN, "abc\n</think>\n\n\n<response>\ndef\n</response>\n", Found("def", (), "abc")),
    ("ernie45", OPEN, "abc\n</think>\ndef", Found("def", (), "abc")),
    ("ernie45", OPEN, f"abc\n</think>\n\n\n{CALL}\n", Found("", (("f", "{}", True),), "abc")),
    ("ernie_x1", LATER, "<think>\nabc\n</think>\n\n\n<response>\nd <b> e", Found("d <b> e", (), "abc")),
    ("granite33", LATER, "<think>hm.</think><response>Four.</response>", Found("Four.", (), "hm.")),
    ("granite33", LATER, "Four.", Found("Four.")),
    ("granite", LATER, "Here is my thought process: hm. Here is my response: yes", Found("yes", (), "hm.")),
    ("granite", LATER, "Here it is", Found("Here it is")),
]


@pytest.mark.parametrize(("name", "prompt", "text", "expected"), WRITTEN)
def test_reasoning_is_parted_however_the_text_is_cut(name, prompt, text, expected):
    reasoning = FORMATS[name]
    form = AnswerFormat(reasoning, reasoning.begins_in(prompt), TOOL_FORMATS["hermes"])
    for cut in range(len(text) + 1):
        assert found([text[:cut], text[cut:]], form) == expected, (text[:cut], text[cut:])
    assert found(text, form) == expected


@pytest.mark.parametrize(
    ("words", "tools", "reasoning"),
    [
        ("<tool_call>\\n{...}</tool_call> <think> </think>", "hermes", "qwen3"),
        ("<tool_call><function=x><parameter=y>", "qwen3_coder", None),
        ("[TOOL_CALLS] [", "mistral", None),
        ("<｜tool▁calls▁begin｜> ```json </think>", "deepseek_v3", "qwen3"),
        ("<｜tool▁calls▁begin｜> </think>", "deepseek_v31", "qwen3"),
        ("<tool_call> <arg_key>", "glm45", None),
        ('Respond in the format {"name": function name, "parameters": ...}', "llama3_json", None),
        ("<think> </think> <response> <tool_call>", "hermes", "ernie45"),
        ("<|start_of_role|> <|tool_call|> <think></think> <response></response>", "granite", "granite33"),
        ("{{ messages }}", None, None),
    ],
)
def test_a_template_tells_its_parsers(words, tools, reasoning):
    assert (tool_parser_of(words), reasoning_parser_of(words)) == (tools, reasoning)
