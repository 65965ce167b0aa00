"""Grammars made to take long, with a real vocabulary: refused, or followed without stopping other threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.structured_output.forced_text import may_force_much
from actors.structured_output.grammars import Grammars
from actors.structured_output.matcher import TokenMatcher
from actors.structured_output.native import TokenTrie
from actors.text.vocabulary import Vocabulary
from cluster.errors import InvalidRequestError
from cluster.grammar import CHOICE, JSON_SCHEMA, LARK, MAX_GRAMMAR_CHARS, REGEX, Grammar
from tests.actors.structured_output.locked_calls import wrapped

# No thread may be stopped for longer, with a factor of five for busy machines.
MOST_S = 5 * 0.05
# Nor the engine's for more of a core's time, which other work on a machine does not change.
MOST_OF_A_CORE_S = 0.05
TOKENS = 24
ROWS_MASK = 1 + 49_152 // 32


@pytest.fixture(scope="module")
def grammars(smollm2_tokenizer) -> Grammars:
    made = Grammars(lambda: Vocabulary.of(smollm2_tokenizer, 49_152), 49_152, smollm2_tokenizer.eos_token_ids)
    made.compile(Grammar(JSON_SCHEMA, "{}"))  # makes the trie of the vocabulary, once in an engine's life
    return made


class Stops:
    """The longest time for which a thread beside that wants to run every millisecond was stopped, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def tick() -> None:
            last = time.perf_counter()
            while not done.is_set():
                time.sleep(0.001)
                now = time.perf_counter()
                self.longest, last = max(self.longest, now - last), now

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def longest_step(matcher: TokenMatcher, seed: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Follow an answer at random; the longest that the engine's thread was busy with a token."""
    rng, mask, longest = np.random.default_rng(seed), np.zeros(ROWS_MASK, np.int32), 0.0
    for _ in range(TOKENS):
        started = clock()
        matcher.fill(mask)
        longest = max(longest, clock() - started)
        if matcher.has_failed or matcher.has_ended:
            break
        token = int(rng.choice(np.flatnonzero(np.unpackbits(mask[1:].view(np.uint8), bitorder="little"))))
        started = clock()
        matcher.accept(token)
        longest = max(longest, clock() - started)
    return longest


def check(grammars: Grammars, grammar: Grammar, seed: int = 0) -> bool:
    """Whether ``grammar`` was taken; either way nobody waited. On a busy machine somebody may wait by chance, but not thrice."""
    for last in (False, False, True):
        locked: dict[str, float] = {}
        with wrapped(partial(timed, locked)):
            taken, longest = watched(grammars, grammar, seed)
        assert max(locked.values(), default=0.0) < MOST_OF_A_CORE_S, (
            f"calls held the interpreter's lock, in seconds of a core: {locked}"
        )
        assert longest[1] < MOST_OF_A_CORE_S, (
            f"a mask or a token takes {longest[1]:.3f} s of a core on the engine's thread"
        )
        if longest[0] < MOST_S:
            return taken
        assert not last, f"compiling stopped other threads for {longest[0]:.3f} s"
    raise AssertionError("not reached")


def timed(longest: dict[str, float], function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """As ``function``; the longest time of a core that a call took goes to ``longest``."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            longest[name] = max(longest.get(name, 0.0), time.thread_time() - began)

    return call


def watched(grammars: Grammars, grammar: Grammar, seed: int) -> tuple[bool, tuple[float, float]]:
    """Whether it was taken, and for how long compiling stopped others, and a token takes a core."""
    anew, stops = Grammars(grammars._loaded_vocabulary, 49_152, sorted(grammars._eos_token_ids)), Stops()
    anew._trie = grammars._trie
    with stops.watched():
        try:
            matcher: TokenMatcher | None = anew.matcher(grammar)
        except InvalidRequestError as refusal:
            matcher, error = None, refusal
    if matcher is None:
        assert error.code == "invalid_grammar" and len(error.message) < 1000
        return False, (stops.longest, 0.0)
    return True, (stops.longest, longest_step(matcher, seed, time.thread_time))


def nested(depth: int, inner: Any, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def objects(count: int) -> dict[str, Any]:
    return {"anyOf": [{"properties": {f"k{i}": {"type": "string"}}, "required": [f"k{i}"]} for i in range(count)]}


def test_the_trie_of_a_vocabulary_is_made_while_others_run(grammars):
    stops, vocabulary = Stops(), grammars._loaded_vocabulary()
    for last in (False, False, True):
        with stops.watched():
            started = time.perf_counter()
            TokenTrie(vocabulary, sorted(grammars._eos_token_ids))
            took = time.perf_counter() - started
        # Whoever holds the lock holds it for nearly all of that.
        if stops.longest < took / 2:
            return
        assert not last, f"the trie took {took:.3f} s and stopped others for {stops.longest:.3f} s"
        stops = Stops()


# A grammar or a schema, and whether it is followed.
ATTACKS: list[tuple[Any, bool]] = [
    ({"enum": ["x" * 60_000]}, True),
    ({"enum": [f"item {i}" for i in range(4000)]}, True),
    ({"properties": {f"p{i}": {"type": "string"} for i in range(200)}, "additionalProperties": False}, True),
    ({"properties": {f"p{i}": {"type": "string"} for i in range(2000)}}, False),
    (objects(900), False),
    ({"properties": {"a": objects(900)}, "required": ["a"], "additionalProperties": False}, True),
    (nested(900, {"type": "null"}, lambda inner: {"items": inner}), False),
    (nested(10, {"type": "null"}, lambda inner: {"anyOf": [inner, {"items": inner}]}), True),
    ({"allOf": objects(900)["anyOf"]}, False),
    ({"type": "integer", "multipleOf": 9973}, True),
    ({"type": "integer", "multipleOf": 25_000_000}, True),
    ({"type": "integer", "multipleOf": 1000000007}, False),
    ({"type": "integer", "multipleOf": 1017760}, False),
    ({"type": "integer", "multipleOf": 9973000}, False),
    ({"type": "integer", "multipleOf": 1953125}, False),
    ({"properties": {f"p{i}": {"multipleOf": 901 + i} for i in range(12)}}, False),
    ({"properties": {f"p{i}": {"multipleOf": 901} for i in range(12)}}, True),
    ({"items": {"type": "number", "multipleOf": 0.10000019}}, False),
    (Grammar(JSON_SCHEMA, '{"type": "integer", "multiple\\u004ff": 1000000007}'), False),
    (Grammar(JSON_SCHEMA, '{"type": "integer", "multipleOf": 1e-99999}'), False),
    (Grammar(LARK, 'start: %json {"type": "integer", "multipleOf" : 1000000007}'), False),
    ({"type": "array", "minItems": 50_000, "items": {"type": "integer"}}, True),
    (Grammar(REGEX, "(a|b)*a(a|b){18}"), True),
    (Grammar(REGEX, "((a{1,100}){1,100}){1,100}"), True),
    (Grammar(CHOICE, json.dumps([f"choice number {i}" for i in range(2500)])), True),
    (Grammar(LARK, "start: " + " | ".join(f'"t{i}" start' for i in range(4000)) + ' | "e"'), False),
    (Grammar(LARK, 'start: a a a a a a a a\na: "x" | a a | ""'), True),
]


@pytest.mark.parametrize(("grammar", "taken"), ATTACKS, ids=range(27))
def test_known_attacks(grammars, grammar, taken):
    grammar = grammar if isinstance(grammar, Grammar) else Grammar(JSON_SCHEMA, json.dumps(grammar))
    assert len(grammar.text) <= MAX_GRAMMAR_CHARS
    assert check(grammars, grammar) == taken


_WIDE = json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}})


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        (" {0,1000}", True),
        ("( {0,90}\n{0,90}){0,9}", False),
        ("(( |\t)* \n){0,300}", True),
        ("(\n( {0,64})?)*", True),
        ("((( {1,3}){1,3}\t){1,9}|(\n{1,3}\t ){1,50})?", True),
        ("(( {0,99}){0,99}){0,99}", False),
    ],
)
def test_white_space_of_a_requests_own_costs_no_more_than_grammars_may(grammars, pattern, taken):
    white_space = Grammar(REGEX, pattern, "guided_whitespace_pattern")
    assert check(grammars, Grammar(JSON_SCHEMA, _WIDE, white_space=white_space)) == taken


FORCED = [
    Grammar(JSON_SCHEMA, json.dumps({"enum": ["x" * 60_000]})),
    Grammar(JSON_SCHEMA, json.dumps({"properties": {"a": {"const": "x" * 60_000}}, "required": ["a"]})),
    Grammar(JSON_SCHEMA, json.dumps({"pattern": "^(xy){30000}", "type": "string"})),
    Grammar(JSON_SCHEMA, '{"type": "string", "pattern": "^(xy)\\u007b30000\\u007d"}'),
    Grammar(REGEX, "((xy){200}){200}"),
    Grammar(CHOICE, json.dumps(["x" * 60_000])),
    Grammar(LARK, 'start: "a" b\nb: "' + "x" * 60_000 + '"'),
    Grammar(LARK, "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(15)) + '\nT15: "xy"'),
]


@pytest.mark.parametrize("grammar", FORCED, ids=range(8))
def test_a_text_that_has_to_come_costs_its_tokens_little(grammars, grammar):
    """In seconds of a core, which other work on the machine does not change."""
    # What it takes in milliseconds, and took a hundred of before.
    assert longest_step(grammars.matcher(grammar), 0, time.thread_time) < 0.05


@pytest.mark.parametrize(
    ("text", "much"),
    [
        ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", False),
        ("(a{3}-){2}", False),
        ("a{9000}", True),
        ("(ab){5000}", True),
        ("(a{100}){100}", True),
        ("a{100}{100}", True),
        ("a{1,9000}", False),
    ],
)
def test_what_may_be_forced_is_bounded_by_its_length_and_its_counts(text, much):
    for source in (
        json.dumps({"pattern": text, "description": "y" * 4000}),
        f"start: /{text}/",
        f'start: %json "{text}"',
    ):
        assert may_force_much(source) == much


def test_a_schema_means_the_same_without_forcing(grammars):
    schema = {"type": "object", "properties": {"long": {"const": "x" * 8300}, "n": {"enum": [1, 2]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    seen = set()
    for seed in range(2):
        rng, matcher, mask, tokens = np.random.default_rng(seed), grammars.matcher(Grammar(JSON_SCHEMA, json.dumps(schema))), \
            np.zeros(ROWS_MASK, np.int32), []  # fmt: skip
        while not matcher.has_ended and len(tokens) < 9100:
            matcher.fill(mask)
            tokens.append(int(rng.choice(np.flatnonzero(np.unpackbits(mask[1:].view(np.uint8), bitorder="little")))))
            matcher.accept(tokens[-1])
        text = b"".join(map(grammars._loaded_vocabulary().token_bytes, tokens[:-1]))
        answer = json.loads(text)
        jsonschema.validate(answer, schema)
        seen.add(len(answer))
    assert seen


def _large(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    counts = st.integers(1, 300)
    return st.one_of(
        st.builds(lambda s, n: {"properties": {f"p{i}": s for i in range(n)}}, inner, counts),
        st.builds(lambda s, n: {"properties": {f"p{i}": s for i in range(n)}, "required": ["p0"]}, inner, counts),
        st.builds(lambda s, n: {"anyOf": [s, *({"properties": {f"q{i}": s}} for i in range(n))]}, inner, counts),
        st.builds(lambda s, n: {"oneOf": [{"items": s}] * n}, inner, counts),
        st.builds(lambda s, n: {"items": s, "minItems": n, "maxItems": 90 * n}, inner, counts),
        st.builds(lambda s, n: {"prefixItems": [s] * n}, inner, counts),
        st.builds(
            lambda s, n: nested(n // 4, s, lambda of: {"properties": {"a": of}, "required": ["a"]}), inner, counts
        ),
        st.builds(lambda s, n: {"patternProperties": {f"^x{{{n}}}": s}, "additionalProperties": s}, inner, counts),
    )


LARGE = st.recursive(
    st.one_of(
        st.just({}),
        st.integers(1, 3000).map(lambda n: {"enum": [f"v{i}" for i in range(n)]}),
        st.integers(1, 5000).map(lambda n: {"type": "string", "minLength": n, "maxLength": 4 * n}),
        st.integers(1, 400).map(lambda n: {"type": "string", "pattern": f"^([a-c]{{1,{n}}}x?){{1,{n}}}$"}),
        st.integers(2, 10**9).map(lambda n: {"type": "integer", "multipleOf": n}),
        st.floats(0, 1e12).map(lambda x: {"type": "number", "minimum": x, "exclusiveMaximum": x + 1e9}),
        st.sampled_from(["date-time", "email", "ipv6", "uri", "uuid"]).map(lambda f: {"type": "string", "format": f}),
    ),
    _large,
    max_leaves=3,
)


def test_random_large_schemas(grammars):
    taken: list[bool] = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(LARGE, st.integers(0, 99))
    def run(schema, seed):
        text = json.dumps(schema)
        if len(text) <= MAX_GRAMMAR_CHARS:
            taken.append(check(grammars, Grammar(JSON_SCHEMA, text), seed))

    run()
    assert any(taken), "none of them was followed"
