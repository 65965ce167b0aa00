"""Calls whose arguments are written one by one: under a grammar they are in the family's form, parse, and fit their schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.structured_output.grammars import Grammars
from actors.text.detokenizer import IncrementalDetokenizer
from actors.text.tokenizer import Tokenizer
from actors.text.vocabulary import Vocabulary
from cluster.grammar import Grammar
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.argument_grammar import arguments_of
from deployments.openai_api.requests.protocol import ChatCompletionRequest, parse_request
from deployments.parsers.answer_parser import AnswerFormat
from deployments.parsers.tool_formats import JSON, TOOL_FORMATS
from gpu_ops.twins.sampling import apply_token_masks
from tests.actors.structured_output.random_schemas import schemas
from tests.deployments.openai_api.tool_tokenizer import tool_tokenizer
from tests.deployments.parsers.found import Found, found

FAMILIES = ["qwen3_coder", "glm45", "pythonic"]
# Marks of a family are words of some vocabularies, and special tokens of others.
WORDS, SPECIAL = tool_tokenizer(), tool_tokenizer(special_of=("glm45",))
GRAMMARS = {
    id(one): Grammars(lambda one=one: Vocabulary.of(one, one.vocab_size), one.vocab_size, tuple(one.eos_token_ids))
    for one in (WORDS, SPECIAL)
}
NAMED = {"type": "function", "function": {"name": "f"}}
# What an answer would never come to by chance.
ENDS = {
    "qwen3_coder": ["\n</parameter>\n", "</parameter>\n", "\n\n</parameter>"],
    "glm45": ["</arg_value>\n", "\n</arg_value>"],
    "pythonic": ['"', '", '],
}


def made(family: str, tokenizer: Tokenizer, *functions: dict[str, Any], **fields: Any) -> tuple[Any, AnswerFormat]:
    tools = [{"type": "function", "function": function} for function in functions]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": "required", **fields}
    request = parse_request(ChatCompletionRequest, body)
    formats = AnswerFormats(tokenizer, family, "none")
    form = formats.of(request, tokenizer.encode("x"), None)
    return formats.grammar(request, form, None), form


def answer_of(family: str, tokenizer: Tokenizer, grammar: Grammar, seed: int, most: int = 300) -> list[int]:
    """Tokens at random under ``grammar`` to its end, which a text's end brings closer; empty if it does not come."""
    rng, matcher, wanted, tokens = np.random.default_rng(seed), GRAMMARS[id(tokenizer)].matcher(grammar), [], []
    while len(tokens) < most:
        mask, logits = (
            np.zeros((1, 1 + -(-tokenizer.vocab_size // 32)), np.int32),
            np.zeros((1, tokenizer.vocab_size), np.float32),
        )
        matcher.fill(mask[0])
        apply_token_masks(logits, mask, np.zeros(1, np.int32))
        choices = np.flatnonzero(logits[0] == 0)
        assert len(choices) and not matcher.has_failed
        if not wanted and rng.random() < 0.3:
            wanted = tokenizer.encode(str(rng.choice(ENDS[family])), add_special_tokens=False)
        ends = [token for token in tokenizer.eos_token_ids if token in choices]
        token = ends[0] if ends and rng.random() < 0.7 else int(rng.choice(choices))
        if wanted and wanted[0] in choices:
            token = wanted.pop(0)
        else:
            wanted = []
        tokens.append(token)
        matcher.accept(token)
        if matcher.has_ended:
            return tokens
    return []


def pieces_of(tokens: list[int], tokenizer: Tokenizer, form: AnswerFormat) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, shown=AnswerFormats(tokenizer).shown_tokens(form))
    return [detokenizer.push(token) for token in tokens]


TEXTS = st.sampled_from(
    [
        {"type": "string"},
        True,
        {"enum": ["celsius", "a/b", 'say "x"', "1", "two\nlines", "\n"]},
        {"type": "string", "enum": ["x", "<b>", ""]},
        {"const": "null"},
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"type": "string", "pattern": "^(ab|[0-9/]{2,3})$"},
        {"type": "string", "pattern": "a|b", "maxLength": 4},
        {"type": "string", "pattern": "\\d"},
        {"type": "string", "pattern": "(?:x\n)$", "description": "ends a line"},
    ]
)
KEYS = st.sampled_from(["city", "days", "unit", "a b", "x.y", "in", "größe"])


@st.composite
def parameters(draw: st.DrawFn, keys: st.SearchStrategy[str]) -> dict[str, Any]:
    # Definitions of a part would not be where its references look.
    values = schemas().filter(lambda schema: "$defs" not in schema) | TEXTS | st.just({"$ref": "#/$defs/r"})
    properties = draw(st.dictionaries(keys, values, max_size=4))
    required = [key for key in properties if draw(st.booleans())]
    others = draw(st.booleans())
    extra = ["others"] if others and draw(st.booleans()) else []
    return {
        "type": "object",
        "properties": properties,
        "required": required + extra,
        "additionalProperties": others,
        "$defs": {"r": {"enum": ["</parameter>", "</arg_value>", 3]}},
    }


def check(family: str, tokenizer: Tokenizer, functions: list[dict[str, Any]], seed: int, **fields: Any) -> Found | None:
    """An answer under the grammar of ``functions``, held to all that is promised of one; None if none came to its end."""
    grammar, form = made(family, tokenizer, *functions, **fields)
    assert form.tools is TOOL_FORMATS[family]
    tokens = answer_of(family, tokenizer, grammar, seed)
    if not tokens:
        return None
    pieces = pieces_of(tokens, tokenizer, form)
    text = "".join(pieces)
    whole = found([text], form)
    assert not whole.content and whole.calls, text
    by_name = {function["name"]: function["parameters"] for function in functions}
    for name, arguments, is_complete in whole.calls:
        assert is_complete, text
        jsonschema.validate(json.loads(arguments), by_name[name])
    assert found(pieces, form) == whole
    for cut in range(len(pieces) + 1):
        assert found(["".join(pieces[:cut]), "".join(pieces[cut:])], form) == whole, cut
    return whole


@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [(family, WORDS) for family in FAMILIES] + [("glm45", SPECIAL)],
    ids=[*FAMILIES, "glm45 with special tokens"],
)
def test_required_arguments_parse_and_fit_their_schemas_however_they_are_cut(family, tokenizer):
    ended = []
    keys = st.sampled_from(["city", "days", "unit", "_a1", "a"]) if family == "pythonic" else KEYS

    @settings(max_examples=12, deadline=None)
    @given(parameters(keys), parameters(keys), st.integers(0, 2**32 - 1), st.booleans())
    def run(one, other, seed, strict):
        functions = [{"name": "f", "parameters": one, "strict": strict}, {"name": "g-2", "parameters": other}]
        if family == "pythonic":
            functions[1]["name"] = "g.two"
        ended.append(check(family, tokenizer, functions, seed) is not None)

    run()
    assert sum(ended) > len(ended) / 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_named_function_is_called_once_in_the_family_form(family):
    written = {
        "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=city>\nBern\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "glm45": "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        "pythonic": '[f(city="Bern", days=3)]',
    }[family]  # fmt: skip
    schema = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
    functions = [{"name": "f", "parameters": schema}, {"name": "g", "parameters": schema}]
    grammar, form = made(family, WORDS, *functions, tool_choice=NAMED)
    matcher = GRAMMARS[id(WORDS)].matcher(grammar, WORDS.encode(written, add_special_tokens=False))
    matcher.accept(WORDS.eos_token_ids[0])
    assert matcher.has_ended and not matcher.has_failed
    assert found([written], form) == Found("", (("f", '{"city": "Bern", "days": 3}', True),))
    for text in (written + written, written.replace("f", "g", 1), '[{"name": "f", "arguments": {}}]'):
        assert GRAMMARS[id(WORDS)].matcher(grammar, WORDS.encode(text, add_special_tokens=False)).has_failed
    for seed in range(6):
        one = check(family, WORDS, functions, seed, tool_choice=NAMED)
        assert one is None or len(one.calls) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_strict_tools_are_bound_wherever_a_call_begins(family):
    function = {
        "name": "f",
        "parameters": {"properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "strict": True,
    }
    grammar, form = made(family, WORDS, function, tool_choice="auto")
    good = {
        "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>",
        "glm45": "<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        "pythonic": "[f(n=3)]",
    }[family]
    before = "" if family == "pythonic" else "Words. "

    def fails(text: str) -> bool:
        return GRAMMARS[id(WORDS)].matcher(grammar, WORDS.encode(text, add_special_tokens=False)).has_failed

    assert found([before + good], form) == Found(before.rstrip(), (("f", '{"n": 3}', True),))
    assert not fails(before + good) and not fails("Only words.")
    assert fails(before + good.replace("3", "x")) and fails("<function=f></function>") == (family == "qwen3_coder")


@pytest.mark.parametrize(
    ("family", "name", "schema"),
    [
        ("pythonic", "a/b", {}),
        ("pythonic", "f", {"properties": {"class": {}}}),
        ("pythonic", "f", {"properties": {"a-b": {}}}),
        ("qwen3_coder", "f", {"properties": {"a>b": {}}}),
        ("qwen3_coder", "f", {"properties": {"a": {"type": "string", "format": "date"}}}),
        ("qwen3_coder", "f", {"properties": {"a": {"type": "string", "pattern": "a\\b"}}}),
        ("glm45", "f", {"properties": {"a": {"type": "string", "pattern": "^a|b$"}}}),
        ("glm45", "f", {"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}),
        ("glm45", "f", {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
        ("glm45", "f", {"properties": {"a": {"$ref": "#/properties/b"}, "b": {}}}),
        ("glm45", "f", {"properties": {}, "additionalProperties": {"type": "integer"}, "required": ["a"]}),
        ("glm45", "f", {"properties": {"a": False}, "required": ["a"]}),
    ],
)
def test_what_cannot_be_written_so_becomes_json(family, name, schema):
    form = TOOL_FORMATS[family].wrapping.arguments
    assert arguments_of(name, {"type": "object", **schema}, form) is None
    assert made(family, WORDS, {"name": name, "parameters": schema})[1].tools is JSON
    assert made(family, WORDS, {"name": "f"}, {"name": "f"})[1].tools is JSON


def test_values_that_have_an_end_in_them_are_read_whole():
    form = AnswerFormat(tools=TOOL_FORMATS["qwen3_coder"], functions={"f": {"a": {"type": "array"}}})
    begin, end = "<function=f>\n<parameter=a>\n", "\n</parameter>\n</function>"
    for value in ('["</parameter>"]', ' ["\\"</parameter>", {"</function>": 1}]'):
        text = begin + value + end
        for cut in range(len(text) + 1):
            assert found([text[:cut], text[cut:]], form) == Found("", (("f", f'{{"a": {value.strip()}}}', True),))
    # What only begins like JSON is text up to its end, as before.
    for value in ('["', "[a] b", '["a"] b', "[1, }"):
        expected = json.dumps(value)
        assert found([begin + value + end], form).calls[0] == ("f", f'{{"a": {expected}}}', True)


def test_a_number_beyond_those_of_python_is_one_in_json():
    form = AnswerFormat(tools=TOOL_FORMATS["pythonic"])
    ((_, arguments, _),) = found(["[f(a=1e999, b=[-1e999])]"], form).calls
    assert json.loads(arguments) == {"a": 1.7976931348623157e308, "b": [-1.7976931348623157e308]}
