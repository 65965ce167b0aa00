"""Structural tags: what each form of them takes, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from actors.structured_output.grammars import Grammars
from actors.text.vocabulary import Vocabulary
from cluster.errors import InvalidRequestError
from cluster.grammar import STRUCTURAL_TAG, Grammar
from tests.deployments.openai_api.tool_tokenizer import tool_tokenizer

TOKENIZER = tool_tokenizer()
(EOS,) = TOKENIZER.eos_token_ids
GRAMMARS = Grammars(lambda: Vocabulary.of(TOKENIZER, TOKENIZER.vocab_size), TOKENIZER.vocab_size, (EOS,))
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
AS_JSON = {"type": "json_schema", "json_schema": SCHEMA}
TAG = {"type": "tag", "begin": "<t>", "content": AS_JSON, "end": ["</t>", "</u>"]}
OLD = {
    "structures": [
        {"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"},
        {"begin": "<f=b>", "schema": {}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}
THOUGHT = {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"}
WORDS = [{"type": "const_string", "value": "yes"}, {"type": "regex", "pattern": r"[0-9]/\\[a-z]\/"}]


def grammar(value: dict[str, Any]) -> Grammar:
    return Grammar(STRUCTURAL_TAG, json.dumps(value), "structured_outputs.structural_tag")


def taken(one: Grammar, text: str) -> tuple[str, bool]:
    """As much of ``text`` as may come, and whether the answer may end there."""
    matcher, mask, tokens = GRAMMARS.matcher(one), np.zeros(1 + -(-TOKENIZER.vocab_size // 32), np.int32), []

    def allows(token: int) -> bool:
        matcher.fill(mask)
        return bool(mask.view(np.uint32)[1 + token // 32] >> np.uint32(token % 32) & 1)

    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if not allows(token):
            break
        matcher.accept(token)
        tokens.append(token)
    return TOKENIZER.decode(tokens, skip_special_tokens=False), allows(EOS)


@pytest.mark.parametrize(
    ("value", "whole", "cut"),
    [
        (OLD, ['hi <f=a>{"a": 1}</f> and <f=b>[1]</f> x', "words"], {"hi <f=c>": "hi <f=", '<f=a>{"b': '<f=a>{"'}),
        ({"format": TAG}, ['<t>{"a": 1}</t>', '<t>{"a":1}</u>'], {"x": "", '<t>{"a": 1}</v>': '<t>{"a": 1}</'}),
        ({"format": {"type": "sequence", "elements": [THOUGHT, AS_JSON]}}, ['<think>a<b</think>{"a": 2}'],
         {"<think></think>x": "<think></think>"}),
        ({"format": {"type": "or", "elements": WORDS}}, ["yes", "3/\\b/"], {"no": "", "3/b": "3/"}),
        ({"format": {"type": "tags_with_separator", "tags": [TAG], "separator": ", "}},
         ["", '<t>{"a": 1}</t>, <t>{"a": 1}</u>'], {'<t>{"a": 1}</t>; ': '<t>{"a": 1}</t>'}),
        ({"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [TAG], "at_least_one": True,
                     "stop_after_first": True}},
         ['abc <t>{"a": 1}</t>'], {"abc": "abc", '<t>{"a": 1}</t>x': '<t>{"a": 1}</t>'}),
        # A special token is no text: it is written by its id, and as a trigger it is the token.
        ({"format": {"type": "triggered_tags", "triggers": ["[TOOL_CALLS]"], "tags": [{**TAG, "begin": "[TOOL_CALLS]f"}]}},
         ['a [TOOL_CALLS]f{"a": 1}</t> b'], {"[TOOL_CALLS]x": "[TOOL_CALLS]"}),
        ({"format": {"type": "plus", "content": WORDS[0]}}, ["yesyes"], {"": ""}),
        ({"format": {"type": "any_text"}}, ["<t>", ""], {}),
    ],
)  # fmt: skip
def test_what_the_forms_take(value, whole, cut):
    for text in whole:
        assert taken(grammar(value), text) == (text, True)
    for text, begin in cut.items():
        got, may_end = taken(grammar(value), text)
        # What is cut for more than a free end may not end there, or nothing more may come.
        assert got == begin and (may_end is False or text != got)


def test_white_space_in_the_json_of_a_tag_is_bounded():
    assert taken(grammar({"format": TAG}), '<t>{"a":' + " " * 9) == ('<t>{"a":  ', False)


@pytest.mark.parametrize(
    ("value", "message", "place"),
    [
        ({}, "has format, or structures and triggers", ""),
        ({"format": {"type": "qwen_xml_parameter"}}, '"qwen_xml_parameter" is not supported', "format.type"),
        ({"format": {"type": "any_text", "excludes": ["x"]}}, '"any_text", with excludes, is not supported', "format.type"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}, TAG]}}, "any_text stands in a tag",
         "format.elements[0]"),
        ({"format": {**TAG, "content": {"type": "grammar"}}}, '"grammar" is not supported', "format.content.type"),
        ({"format": {**TAG, "end": 1}}, "must be a string", "format.end"),
        ({"structures": OLD["structures"], "triggers": ["<g"]}, "begins with none of the triggers", "structures[0].begin"),
        ({"structures": OLD["structures"]}, "must be a list with at least 1 item", "triggers"),
        ({"format": {**TAG, "content": {"type": "json_schema", "json_schema": {"type": "wat"}}}}, "wat",
         "format.content.json_schema"),
        ({"format": {"type": "or", "elements": [TAG, {**TAG, "content": {"type": "json_schema", "json_schema": {
            "properties": {"a": {"anyOf": [{}, {"uniqueItems": True}]}}}}}]}}, 'Unimplemented keys: ["uniqueItems"]',
         "format.elements[1].content.json_schema.properties.a.anyOf[1]"),
        ({"format": {"type": "sequence", "elements": [{"type": "regex", "pattern": "a"}, {"type": "regex", "pattern": "("}]}},
         "unclosed group", "format.elements[1].pattern"),
        ({"format": {**TAG, "content": {"type": "json_schema", "json_schema": {"multipleOf": 1000003}}}}, "remainders",
         "format.content.json_schema"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_with_its_place(value, message, place):
    with pytest.raises(InvalidRequestError) as refused:
        GRAMMARS.compile(grammar(value))
    param = "structured_outputs.structural_tag" + (place and "." + place)
    assert message in refused.value.message and refused.value.message.startswith(f"{param}: ")
    assert (refused.value.param, refused.value.code) == (param, "invalid_grammar")
