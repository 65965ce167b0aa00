"""Grammars that make calls: every answer that they allow is read back as calls whose arguments their schemas describe."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

from actors.structured_output.grammars import Grammars
from actors.structured_output.matcher import TokenMatcher
from actors.text.detokenizer import IncrementalDetokenizer
from actors.text.vocabulary import Vocabulary
from cluster.api_errors import ApiError
from cluster.errors import InvalidRequestError
from cluster.grammar import Grammar
from cluster.sampling_params import SamplingParams
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.requests.protocol import ChatCompletionRequest, parse_request
from deployments.openai_api.requests.structured_output import grammar_of
from deployments.parsers.answer_parser import AnswerFormat
from deployments.parsers.tool_formats import TOOL_FORMATS
from gpu_ops.twins.sampling import apply_token_masks
from tests.deployments.openai_api.tool_tokenizer import tool_tokenizer
from tests.deployments.parsers.found import Found, found

SCHEMAS = {
    "look": {
        "type": "object",
        "properties": {"a": {"enum": ["x", 'y"']}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "stop": {"type": "object", "properties": {}, "additionalProperties": False},
}
MESSAGES = [{"role": "user", "content": "x"}]
AS_JSON = [name for name, form in sorted(TOOL_FORMATS.items()) if form.wrapping.arguments is None]
TOKENIZER = tool_tokenizer()
(EOS,) = TOKENIZER.eos_token_ids
VOCAB_SIZE = TOKENIZER.vocab_size
GRAMMARS = Grammars(lambda: Vocabulary.of(TOKENIZER, VOCAB_SIZE), VOCAB_SIZE, (EOS,))


# No grammar describes it argument by argument.
NOT_BOUND = {"name": "f", "parameters": {"oneOf": [{}, {"type": "object"}]}}


def tools(*strict: str) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": name in strict}}
        for name, schema in SCHEMAS.items()
    ]


def made(family: str, prompt: str = "x", reasoning: str = "none", **fields: Any) -> tuple[Any, AnswerFormat]:
    """The grammar of a request's answers, and what is looked for in them."""
    body = {"messages": MESSAGES, "tools": tools(), **fields}
    request = parse_request(ChatCompletionRequest, body)
    formats = AnswerFormats(TOKENIZER, family, reasoning)
    own = grammar_of(request)
    form = formats.of(request, TOKENIZER.encode(prompt), own)
    return formats.grammar(request, form, own), form


def allowed(matcher: TokenMatcher) -> np.ndarray:
    """Ids of the tokens that may come."""
    mask, logits = np.zeros((1, -(-VOCAB_SIZE // 32) + 1), np.int32), np.zeros((1, VOCAB_SIZE), np.float32)
    matcher.fill(mask[0])
    apply_token_masks(logits, mask, np.zeros(1, np.int32))
    return np.flatnonzero(logits[0] == 0)


def text_of(tokens: list[int], form: AnswerFormat) -> str:
    shown = AnswerFormats(TOKENIZER).shown_tokens(form)
    detokenizer = IncrementalDetokenizer(TOKENIZER, shown=shown)
    return "".join(map(detokenizer.push, tokens))


def answers(grammar: Grammar, form: AnswerFormat, count: int = 12) -> list[Found]:
    """Of a model that takes tokens at random, and rather ends; those that end."""
    whole = []
    for seed in range(count):
        rng, matcher, tokens = np.random.default_rng(seed), GRAMMARS.matcher(grammar), []
        while not matcher.has_ended and len(tokens) < 600:
            choices = allowed(matcher)
            tokens.append(EOS if EOS in choices and rng.random() < 0.5 else int(rng.choice(choices)))
            matcher.accept(tokens[-1])
        if tokens[-1] == EOS:
            whole.append(found([text_of(tokens, form)], form))
    assert whole
    return whole


def check(call: tuple[str, str, bool]) -> str:
    name, arguments, done = call
    assert done
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    return name


@pytest.mark.parametrize("family", AS_JSON)
def test_required_calls_are_complete_and_fit_their_schemas(family):
    grammar, form = made(family, tool_choice="required")
    names, counts = set(), set()
    for content, calls, _ in answers(grammar, form):
        assert not content and calls
        names |= {check(call) for call in calls}
        counts.add(len(calls))
    assert names == set(SCHEMAS) and len(counts) > 1


@pytest.mark.parametrize("family", ["hermes", "mistral", "llama3_json"])
def test_one_call_where_no_more_are_wanted(family):
    named = {"type": "function", "function": {"name": "stop"}}
    for fields in ({"tool_choice": "required", "parallel_tool_calls": False}, {"tool_choice": named}):
        for content, calls, _ in answers(*made(family, **fields)):
            assert not content and len(calls) == 1
            check(calls[0])
            assert "parallel_tool_calls" in fields or calls[0][0] == "stop"


@pytest.mark.parametrize("family", AS_JSON)
def test_strict_tools_keep_to_their_schemas_whenever_they_are_called(family):
    grammar, form = made(family, tools=tools("look"))
    wrapping = TOOL_FORMATS[family].wrapping
    before = "Words first. " if wrapping.marker else ""
    text, _ = taken(grammar, form, before + wrapping.written([("look", '{"a": "x", "b": 1}')]))
    assert found([text], form) == Found(before.rstrip(), (("look", '{"a": "x", "', False),))
    good = before + wrapping.written([("look", '{"a": "x"}'), ("stop", "{}")])
    assert taken(grammar, form, good) == (good, True)
    assert taken(grammar, form, "Only words, [1] {2}.") == ("Only words, [1] {2}.", True)


def taken(grammar: Grammar, form: AnswerFormat, text: str) -> tuple[str, bool]:
    """As much of a text as may come, token by token, and whether it may end there."""
    matcher, tokens = GRAMMARS.matcher(grammar), []
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if token not in allowed(matcher):
            break
        matcher.accept(token)
        tokens.append(token)
    return text_of(tokens, form), EOS in allowed(matcher)


@pytest.mark.parametrize("prompt", ["<think>", "x"])
def test_reasoning_may_stand_before_calls(prompt):
    grammar, form = made("hermes", prompt, "qwen3", tool_choice="required")
    begin = "" if prompt == "<think>" else "<think>"
    call = TOOL_FORMATS["hermes"].wrapping.written([("stop", "{}")])
    text = f"{begin}hm [1]</think>{call}"
    assert taken(grammar, form, text) == (text, True)
    assert found([text], form) == Found("", (("stop", "{}", True),), "hm [1]")
    assert taken(grammar, form, f"{begin}hm</think> words") == (f"{begin}hm</think> ", False)


@pytest.mark.parametrize(
    "off",
    [
        {"thinking_token_budget": 0},
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
    ],
)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "stop"}}])
def test_without_thinking_a_call_begins_at_once(off, choice):
    call = TOOL_FORMATS["hermes"].wrapping.written([("stop", "{}")])
    grammar, form = made("hermes", "x", "qwen3", tool_choice=choice, **off)
    assert taken(grammar, form, "<think>hm</think>" + call) == ("", False)
    assert taken(grammar, form, call) == (call, True)
    # A prompt that ended its reasoning leaves nothing open; in one that began it, only a budget ends it.
    grammar, form = made("hermes", "<think>\n\n</think>\n\n", "qwen3", tool_choice=choice)
    assert taken(grammar, form, "<think>") == ("", False) and taken(grammar, form, call) == (call, True)
    grammar, form = made("hermes", "<think>", "qwen3", tool_choice=choice, **off)
    assert taken(grammar, form, "hm</think>" + call) == ("hm</think>" + call, True)
    # The free one may think before its call.
    grammar, form = made("hermes", "x", "qwen3", tool_choice=choice)
    assert taken(grammar, form, "<think>hm</think>" + call)[1]


@pytest.mark.parametrize("prompt", ["<think>", "x"])
def test_a_budget_ends_reasoning_before_a_call(prompt):
    """A model that never stops thinking, or thinks as soon as it may, calls all the same within so many tokens."""
    for budget in (0, 5):
        fields = {"tool_choice": "required", "parallel_tool_calls": False, "thinking_token_budget": budget}
        body = parse_request(ChatCompletionRequest, {"messages": MESSAGES, "tools": tools()[1:], **fields})
        formats = AnswerFormats(TOKENIZER, "hermes", "qwen3")
        form = formats.of(body, TOKENIZER.encode(prompt), None)
        params = SamplingParams(
            grammar=formats.grammar(body, form, None),
            thinking_token_budget=budget,
            reasoning_marks=formats.marks(body, form),
        )
        GRAMMARS.prepare(params)
        matcher, tokens, rng = GRAMMARS.matcher_of(params), [], np.random.default_rng(1)
        think = TOKENIZER.encode("<think>", add_special_tokens=False)[0]
        call_begin = TOKENIZER.encode("<tool_call>", add_special_tokens=False)[0]
        while len(tokens) < 200 and (not tokens or tokens[-1] != EOS):
            choices = allowed(matcher)
            thinks = call_begin not in tokens and think in choices
            first = [
                one
                for one in choices
                if one not in (call_begin, *TOKENIZER.encode("</think>", add_special_tokens=False))
            ]
            tokens.append(think if thinks else int(rng.choice(first or choices)))
            matcher.accept(tokens[-1])
        got = found([text_of(tokens[:-1], form)], form)
        assert got.calls == (("stop", "{}", True),) and not got.content
        thought = TOKENIZER.encode(got.reasoning, add_special_tokens=False)
        assert len(thought) <= budget and (not budget or thought)


def test_an_answer_is_calls_or_what_a_schema_describes():
    schema = {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"]}
    shape = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
    grammar, form = made("hermes", response_format=shape)
    assert taken(grammar, form, '{"c": true}') == ('{"c": true}', True)
    call = TOOL_FORMATS["hermes"].wrapping.written([("stop", "{}")])
    assert taken(grammar, form, call) == (call, True)
    assert taken(grammar, form, "words") == ("", False)


def test_white_space_of_an_own_schema_beside_tools_is_bounded():
    schema = {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"]}
    grammar, form = made(
        "hermes", response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
    )
    for space, most in (("   ", "  "), ("\n\n", "\n"), ("\n" + " " * 65, "\n" + " " * 64)):
        assert taken(grammar, form, f'{{{space}"c": true}}') == ("{" + most, False)
        assert taken(grammar, form, f'{{{most}"c": true}}') == (f'{{{most}"c": true}}', True)
    schema["x-guidance"] = {"whitespace_pattern": " *"}
    grammar, form = made("hermes", guided_json=schema, guided_whitespace_pattern="\n?")
    assert taken(grammar, form, '{\n\n"c": true}') == ("{\n", False)
    any_object, form = made("hermes", response_format={"type": "json_object"})
    assert taken(any_object, form, '{"a":' + " " * 9) == ('{"a":  ', False)


def test_what_does_not_go_together_is_refused():
    for family, fields in (
        ("hermes", {"guided_regex": "a"}),
        ("pythonic", {"response_format": {"type": "json_object"}, "tools": [{"function": {"name": "a/b"}}]}),
    ):
        with pytest.raises(ApiError, match="does not go together with tools"):
            made(family, **fields)
    with pytest.raises(ApiError, match="how this model writes calls is not to be seen") as caught:
        made("auto")
    assert (caught.value.status, caught.value.param) == (400, "tool_choice")
    with pytest.raises(ApiError, match="tools: this server looks for no tool calls"):
        made("none")
    large = [{"function": {"name": "f", "parameters": {"enum": ["x" * 70_000]}}}]
    with pytest.raises(ApiError, match="at most 65536 are allowed"):
        made("hermes", tools=large, tool_choice="required")


def test_free_answers_have_no_grammar():
    assert made("hermes")[0] is None
    assert made("hermes", tool_choice="none")[0] is None
    assert made("qwen3_coder", tools=[{"type": "function", "function": NOT_BOUND}])[0] is None


def test_strict_tools_that_cannot_be_bound_are_refused():
    plain, other = tools("city")[0], {"type": "function", "function": NOT_BOUND}
    for offered, place, why in (
        ([plain, {**other, "function": NOT_BOUND | {"strict": True}}], 1, r"not those of tools\.1"),
        ([{**plain, "function": plain["function"] | {"strict": True}}, other], 0, r"not those of tools\.1"),
        ([{**plain, "function": plain["function"] | {"strict": True}}, plain], 0, "two have the same name"),
    ):
        with pytest.raises(ApiError, match=f"cannot describe calls of these tools .*{why}") as caught:
            made("qwen3_coder", tools=offered)
        assert (caught.value.status, caught.value.param) == (400, f"tools.{place}.function.strict")
        assert made("qwen3_coder", tools=offered, tool_choice="required")[0] is not None
        assert made("qwen3_coder", tools=offered, tool_choice="none")[0] is None
    # Of tools that are left out the others keep their places.
    bad = {**other, "function": NOT_BOUND | {"strict": True}}
    left = {"mode": "auto", "tools": [{"type": "function", "function": {"name": NOT_BOUND["name"]}}]}
    with pytest.raises(ApiError, match=r"not those of tools\.1") as caught:
        made("qwen3_coder", tools=[plain, bad], tool_choice={"type": "allowed_tools", "allowed_tools": left})
    assert caught.value.param == "tools.1.function.strict"


@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "pythonic"])
@pytest.mark.parametrize(
    ("wrong", "strict", "place", "why"),
    [
        ({"properties": {"x": {"type": "strin"}}}, False, ".properties.x", "Invalid type: strin"),
        ({"properties": {"a/b": {"items": {"anyOf": [{}, {"$ref": "#/$defs/n"}]}}}}, False,
         ".properties.a/b.items.anyOf[1]", "'/$defs/n' does not exist"),
        ({"properties": {"x": {"type": "array", "uniqueItems": True}}}, True, ".properties.x",
         'Unimplemented keys: ["uniqueItems"]'),
        ({"properties": {"x": {"type": "array", "uniqueItems": True, "items": {"pattern": "["}}}}, False,
         ".properties.x.items", "unclosed character class"),
        ({"properties": {"x": {"type": "array", "items": {"multipleOf": 1000003}}}}, False, "", "remainders"),
        ({"properties": {"x": {"allOf": [{"properties": {f"k{i}": {}}, "required": [f"k{i}"]} for i in range(900)]}}}, False,
         ".properties.x", "schema too large"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_followed_is_refused_with_tool_and_place(family, wrong, strict, place, why):
    bad = {"type": "function", "function": {"name": "bad", "parameters": wrong, "strict": strict}}
    grammar, _ = made(family, tools=[tools()[0], bad, tools()[1]], tool_choice="required")
    with pytest.raises(InvalidRequestError) as refused:
        GRAMMARS.compile(_sent(grammar))
    param = "tools.1.function.parameters" + place
    assert (refused.value.param, refused.value.code) == (param, "invalid_grammar")
    assert refused.value.message.startswith(f"{param}: the json_schema ") and why in refused.value.message
    # Where only the good ones may be called, nothing is refused; where only the bad one may be, it is.
    named = {"type": "function", "function": {"name": "look"}}
    GRAMMARS.compile(made(family, tools=[tools()[0], bad, tools()[1]], tool_choice=named)[0])
    named = {"type": "function", "function": {"name": "bad"}}
    with pytest.raises(InvalidRequestError, match=r"tools\.2\.function"):
        GRAMMARS.compile(made(family, tools=[*tools(), bad], tool_choice=named)[0])


def test_a_refusal_of_an_own_schema_beside_tools_names_its_field():
    shape = {
        "type": "json_schema",
        "json_schema": {"name": "r", "schema": {"properties": {"c": {"uniqueItems": True}}}},
    }
    grammar, _ = made("hermes", response_format=shape)
    with pytest.raises(InvalidRequestError, match="Unimplemented keys") as refused:
        GRAMMARS.compile(_sent(grammar))
    assert refused.value.param == "response_format.json_schema.schema.properties.c"


def _sent(grammar: Grammar) -> Grammar:
    """As an engine gets it from an ingress."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(grammar), type=Grammar)
