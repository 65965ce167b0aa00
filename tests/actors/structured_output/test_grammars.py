"""Grammars: what is allowed after which tokens, what is refused and where, what is kept."""

from __future__ import annotations

import gc
import json
import re
import threading

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.structured_output import grammars as grammars_module
from actors.structured_output.grammars import Grammars
from actors.structured_output.matcher import TokenMatcher
from actors.text.vocabulary import Vocabulary
from cluster.errors import InvalidRequestError
from cluster.grammar import CHOICE, JSON_SCHEMA, LARK, MAX_GRAMMAR_CHARS, REGEX, Grammar
from gpu_ops.twins.sampling import apply_token_masks
from tests.actors.structured_output.json_tokenizer import EOS, VOCAB_SIZE, json_tokenizer
from tests.actors.structured_output.random_schemas import schemas

TOKENIZER = json_tokenizer()
ONE_ROW = np.zeros(1, np.int32)


def make_grammars() -> Grammars:
    return Grammars(lambda: Vocabulary.of(TOKENIZER, VOCAB_SIZE), VOCAB_SIZE, (EOS,))


GRAMMARS = make_grammars()


def schema(value: object) -> Grammar:
    return Grammar(JSON_SCHEMA, json.dumps(value))


def allowed(matcher: TokenMatcher) -> np.ndarray:
    """bool [V], by the twin of the op that reads the mask."""
    mask, logits = np.zeros((1, 1 + VOCAB_SIZE // 32), np.int32), np.zeros((1, VOCAB_SIZE), np.float32)
    matcher.fill(mask[0])
    apply_token_masks(logits, mask, ONE_ROW)
    return logits[0] == 0


def answer_of(matcher: TokenMatcher, rng: np.random.Generator, most: int = 200) -> list[int]:
    """Tokens taken at random until the end; not the end where there is something else, mostly."""
    tokens: list[int] = []
    while not matcher.has_ended and len(tokens) < most:
        choices = np.flatnonzero(allowed(matcher))
        assert len(choices), "nothing may come and nothing has ended"
        others = choices[choices != EOS]
        tokens.append(int(rng.choice(others if len(others) and rng.random() < 0.8 else choices)))
        matcher.accept(tokens[-1])
    return tokens


@settings(max_examples=80, deadline=None)
@given(schemas(), st.integers(0, 2**32 - 1))
def test_completed_answers_validate_and_any_cut_is_taken_up_exactly(value, seed):
    grammar, rng = schema(value), np.random.default_rng(seed)
    matcher = GRAMMARS.matcher(grammar)
    tokens = answer_of(matcher, rng)
    assert not matcher.has_failed
    if matcher.has_ended:
        jsonschema.validate(json.loads(TOKENIZER.decode(tokens)), value)
    # As another engine has it, which knows the tokens alone, and nothing of those who were here before.
    elsewhere, running = make_grammars() if rng.random() < 0.1 else GRAMMARS, GRAMMARS.matcher(grammar)
    for cut in range(len(tokens)):
        assert (allowed(elsewhere.matcher(grammar, tokens[:cut])) == allowed(running)).all()
        running.accept(tokens[cut])


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        (Grammar(CHOICE, json.dumps(["ab", 'q"', "a\nb", "\\d", "/x"])), ["ab", 'q"', "a\nb", "\\d", "/x"]),
        (Grammar(REGEX, "(ab|1)+"), ["ab1", "1"]),
        (Grammar(LARK, 'start: "a" b\nb: /[0-9]/+'), ["a1", "a123"]),
        (Grammar(LARK, 'root ::= "a" tail\ntail ::= [0-9]+'), ["a1", "a123"]),
        (schema({"enum": [1, "a"]}), ["1", '"a"']),
    ],
)
def test_each_kind_takes_its_texts_and_no_others(grammar, texts):
    for text in texts:
        matcher = GRAMMARS.matcher(grammar, TOKENIZER.encode(text, False))
        assert allowed(matcher)[EOS], text
        matcher.accept(EOS)
        assert matcher.has_ended
    for text in ("b", texts[0] + "?"):
        assert GRAMMARS.matcher(grammar, TOKENIZER.encode(text, False)).has_failed, text
    rng = np.random.default_rng(1)
    if grammar.kind == CHOICE:
        assert {TOKENIZER.decode(answer_of(GRAMMARS.matcher(grammar), rng)) for _ in range(60)} == set(texts)


def test_behind_the_end_and_after_a_failure_nothing_but_the_end_may_come():
    ended = GRAMMARS.matcher(Grammar(REGEX, "a"), [*TOKENIZER.encode("a", False), EOS])
    failed = GRAMMARS.matcher(Grammar(REGEX, "a"), TOKENIZER.encode("b", False))
    assert (ended.has_ended, ended.has_failed, failed.has_failed) == (True, False, True)
    for matcher in (ended, failed):
        for _ in range(2):
            assert np.flatnonzero(allowed(matcher)).tolist() == [EOS]
            matcher.accept(EOS)
    assert ended.has_ended and not ended.has_failed


def test_a_grammar_beyond_the_limits_fails_by_work_and_not_by_time(monkeypatch):
    monkeypatch.setattr(
        grammars_module, "_LIMITS", grammars_module.llguidance.LLParserLimits(step_max_items=20, verbose_errors=False)
    )
    monkeypatch.setattr(grammars_module, "_TRIED_TOKENS", 0)
    grammar = Grammar(LARK, 'start: a | b | c\na: "x" a? | "x" b\nb: "x" b? | "x" a\nc: "x" a b? c?')
    runs = []
    for _ in range(2):
        matcher = make_grammars().matcher(grammar)
        tokens = []
        while not matcher.has_failed and len(tokens) < 200:
            allowed(matcher)
            tokens.append(TOKENIZER.encode("x", False)[0])
            matcher.accept(tokens[-1])
        runs.append(len(tokens))
    assert runs[0] == runs[1] < 200
    assert np.flatnonzero(allowed(matcher)).tolist() == [EOS]


def takes(grammar: Grammar, text: str) -> bool:
    return not GRAMMARS.matcher(grammar, TOKENIZER.encode(text, False)).has_failed


def test_between_the_tokens_of_json_is_what_its_printers_write_and_no_more():
    value = {"a": [1, {"b": "x  y"}], "c": {}}
    anything = schema({"type": "object"})
    for text in (json.dumps(value), json.dumps(value, separators=(",", ":")), json.dumps(value, indent=16)):
        assert takes(anything, text)
    assert takes(anything, '{ "a" : 1 }') and takes(anything, '{\r\n\t"a":1')
    for text in ("{   ", "{\n\n", '{"a":\n' + " " * 65, '{"a"  \n'):
        assert not takes(anything, text)
    # Who writes a pattern into a schema gets it.
    assert takes(schema({"type": "object", "x-guidance": {"whitespace_pattern": " *"}}), "{" + " " * 90)


def spaced(pattern: str, value: object = True) -> Grammar:
    return Grammar(JSON_SCHEMA, json.dumps(value), white_space=Grammar(REGEX, pattern, "guided_whitespace_pattern"))


@pytest.mark.parametrize("value", [True, {"type": "object", "x-guidance": {"whitespace_pattern": "x*"}}])
def test_who_says_what_white_space_json_has_gets_that(value):
    texts = {
        "compact": '{"a":1,"b":[]}',
        "one": '{ "a": 1, "b": [ ] }',
        "two": '{"a":  1',
        "lines": '{\n"a":1}',
        "x": "{x",
    }
    patterns = {
        "": ["compact"], " ?": ["compact", "one"], "( {1,2})?": ["compact", "one", "two"],
        r"[\n\t ]*": ["compact", "one", "two", "lines"], r"(\n|\/{0})?": ["compact", "lines"],
    }  # fmt: skip
    for pattern, taken in patterns.items():
        assert [name for name, text in texts.items() if takes(spaced(pattern, value), text)] == taken, pattern
    assert GRAMMARS.compile(spaced(" ?")) is not GRAMMARS.compile(schema(True))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (" ", "must match the empty text, too"),
        (r"\n {2}", "must match the empty text, too"),
        (r"\s*", "nothing but what JSON takes for white space"),
        ("( |,)?", "nothing but what JSON takes for white space"),
        ("(", "unclosed group"),
        ("(?= )?", "look-around"),
        ("\0?", "a character 0"),
        ("\ud800?", "surrogates not allowed"),
        ("( {0,99}){0,99}" * 50, "fuel exhausted"),
    ],
)
def test_white_space_that_cannot_be_followed_is_refused_by_its_own_field(pattern, message):
    with pytest.raises(InvalidRequestError, match=message) as refused:
        GRAMMARS.compile(spaced(pattern))
    assert refused.value.param == "guided_whitespace_pattern"
    assert refused.value.message.startswith("guided_whitespace_pattern: the regex ")


def test_what_is_compiled_is_shared_whichever_field_it_came_in():
    one, other = Grammar(REGEX, "1{2}", "guided_regex"), Grammar(REGEX, "1{2}", "structured_outputs.regex")
    assert GRAMMARS.compile(one) is GRAMMARS.compile(other)


UNIQUE = {"type": "array", "uniqueItems": True}
DEEP = {"properties": {"a": {"items": {"properties": {"b/c": UNIQUE}}}}}
IN_DEFINITION = {"$defs": {"d": {"type": "object", "properties": {"x": UNIQUE}}}, "items": {"$ref": "#/$defs/d"}}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (schema(DEEP), '#/properties/a/items/properties/b~1c: Unimplemented keys: ["uniqueItems"]'),
        (schema({"anyOf": [{"type": "null"}, UNIQUE]}), "#/anyOf/1: Unimplemented"),
        (schema(IN_DEFINITION), "#/$defs/d/properties/x: "),
        (schema({"properties": {"p": {"type": "string", "pattern": "(?=a)b"}}}), "#/properties/p: regex parse error"),
        (schema({"properties": {"p": {"$ref": "#/$defs/none"}}}), "#/properties/p: Pointer '/$defs/none' does not exist"),
        (schema({"$ref": "http://127.0.0.1:1/x.json"}), "at #: Resource"),
        (schema({"$ref": "#"}), "cannot be followed: no answer comes to an end under it"),
        (schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "no answer"),
        (schema({"type": "integer", "minimum": 5, "maximum": 2}), "Unsatisfiable schema"),
        (Grammar(LARK, 'start: "a\0"'), "it has a character 0"),
        (schema({"type": "objekt"}), "at #: Invalid type: objekt"),
        (schema([1]), "schema must be an object"),
        (Grammar(JSON_SCHEMA, '{"a":'), "is not valid: no JSON at line 1 column 6"),
        (Grammar(JSON_SCHEMA, '{"items":' * 5000 + "{}" + "}" * 5000), "recursion depth"),
        (Grammar(REGEX, "[a"), "unclosed character class"),
        (Grammar(LARK, 'start: "a" b'), 'unknown name: "b"'),
        (Grammar(LARK, "start: " + "(" * 9000 + '"a"' + ")" * 9000), "too deeply nested"),
        (Grammar(REGEX, "a" * (MAX_GRAMMAR_CHARS + 1)), f"has {MAX_GRAMMAR_CHARS + 1} characters, at most {MAX_GRAMMAR_CHARS}"),
    ],
)  # fmt: skip
def test_refusals_say_where_and_why(grammar, message):
    with pytest.raises(InvalidRequestError, match=re.escape(message)) as refused:
        GRAMMARS.compile(grammar)
    assert refused.value.param == "response_format" and len(refused.value.message) < 700


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("start: (", "1(9)", "1 | start: ("),
        ('start: a\n\na: "x"\nb: )', "4(4)", "4 | b: )"),
        ("start: a", "", ""),
        ('start: "', "1(9)", '1 | start: "'),
        ("start: /a", "1(1)", ""),
    ],
)
def test_a_grammar_is_refused_with_its_own_lines(text, place, shown):
    with pytest.raises(InvalidRequestError) as refused:
        GRAMMARS.compile(Grammar(LARK, text))
    assert place in refused.value.message and shown in refused.value.message and "%llg" not in refused.value.message
    numbers = re.findall(r"^\s*(\d+) \|", refused.value.message, re.MULTILINE)
    assert all(int(number) <= text.count("\n") + 1 for number in numbers), "lines that the client has not written"


def test_a_model_without_an_end_follows_no_grammar():
    with pytest.raises(InvalidRequestError, match="no token that ends an answer"):
        Grammars(lambda: Vocabulary.of(TOKENIZER, VOCAB_SIZE), VOCAB_SIZE, ()).compile(Grammar(REGEX, "a"))


def test_what_is_held_stays_compiled_and_what_is_kept_is_bounded(monkeypatch):
    grammars, held = make_grammars(), Grammar(REGEX, "a")
    compiled, compilations = grammars.compile(held), []
    compile_now = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda grammar: compilations.append(grammar) or compile_now(grammar))
    for i in range(grammars_module._KEPT):
        grammars.compile(Grammar(CHOICE, json.dumps([str(i)])))
    assert len(grammars._kept) == grammars_module._KEPT and held not in grammars._kept
    assert grammars.compile(held) is compiled and held not in compilations
    del compiled
    gc.collect()
    grammars.matcher(held)
    assert compilations[-1] == held
    assert len(grammars._known) == len(grammars._kept) == grammars_module._KEPT


def test_many_threads_that_want_one_grammar_compile_it_once(monkeypatch):
    grammars, compilations = make_grammars(), []
    compile_now = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda grammar: compilations.append(grammar) or compile_now(grammar))
    threads = [threading.Thread(target=grammars.compile, args=(schema({"type": "null"}),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compilations) == 1
