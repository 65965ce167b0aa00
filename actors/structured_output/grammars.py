"""Grammars of requests: compiled once, kept while requests have them, bounded in size and work."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import llguidance
import numpy as np

from actors.structured_output.forced_text import may_force_much, placed_as_written, without_forcing
from actors.structured_output.matcher import TokenMatcher
from actors.structured_output.multiples import MOST_REMAINDERS, too_fine_multiple
from actors.structured_output.native import NativeMatcher, TokenTrie, grammar_error
from actors.structured_output.schema_place import as_field, place_of_error
from actors.structured_output.structural_tags import SpecialId, WrongPart, structural_tag_grammar
from actors.structured_output.thinking import Matcher, ThinkingMatcher
from actors.structured_output.white_space import cannot_be_followed
from actors.text.vocabulary import Vocabulary
from cluster.errors import InvalidRequestError, ModelLoadError
from cluster.grammar import (
    CHOICE,
    JSON_SCHEMA,
    JSON_WHITESPACE,
    LARK,
    MAX_GRAMMAR_CHARS,
    REGEX,
    STRUCTURAL_TAG,
    Grammar,
)
from cluster.reasoning import ReasoningMarks
from cluster.sampling_params import SamplingParams

# How many are kept that no request has.
_KEPT = 64
# Tokens of an answer that are tried when a grammar is compiled.
_TRIED_TOKENS = 8
# Work, not time, so that a request meets them on every machine or on none: about 20 ms to compile, at most 50 ms a token. As many
# items as an object with some 350 optional properties has. A state of the lexer takes a kilobyte or two.
_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=5_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# How the library begins to say that nothing may come, and no end either, as of a reference to itself.
_NO_ANSWER = "NoExtension"
# Of a grammar that is refused, how many are looked at.
_MOST_PARTS = 200
# What an error says of a grammar; the library's own may quote all of it.
_MAX_ERROR_CHARS = 500


class CompiledGrammar:
    """A grammar at its beginning; whoever wants it to stay compiled holds this.

    Args:
        matcher: as compiled; copies of it share what they learn of the vocabulary.
    """

    def __init__(self, matcher: NativeMatcher) -> None:
        self.matcher = matcher


class Grammars:
    """Compiles; safe to use from several threads.

    Args:
        load_vocabulary: called at the first use, on the thread that compiles.
        vocab_size: of the model, in logits.
        eos_token_ids: what the engine stops at.
    """

    def __init__(
        self, load_vocabulary: Callable[[], Vocabulary], vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._load_vocabulary = load_vocabulary
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocabulary: Vocabulary | None = None
        self._trie: TokenTrie | None = None
        allowed = np.zeros(32 * ((vocab_size + 31) // 32), bool)
        allowed[list(eos_token_ids)] = True
        self._end_words = np.packbits(allowed, bitorder="little").view(np.int32)
        self._known: weakref.WeakValueDictionary[Grammar, CompiledGrammar] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self._loading = threading.Lock()

    def prepare(self, params: SamplingParams) -> CompiledGrammar | None:
        """What ``matcher_of`` needs, made now; who holds the grammar keeps it compiled. Takes as long as ``compile``.

        Raises:
            InvalidRequestError: the grammar is not valid, or nothing that masks tokens can be followed here.
        """
        if params.bounds_reasoning:
            try:
                self._loaded_vocabulary()
            except ModelLoadError as error:
                says = f"thinking_token_budget: cannot be followed by this model: {error.message}"
                raise InvalidRequestError(says, "thinking_token_budget", "unsupported_parameter") from error
        return None if params.grammar is None else self.compile(params.grammar)

    def matcher_of(self, params: SamplingParams, tokens: Sequence[int] = ()) -> Matcher | None:
        """Which tokens may come behind ``tokens`` of an answer; None for any. Quick behind ``prepare``."""
        inner = None if params.grammar is None else self.matcher(params.grammar, tokens)
        if not params.bounds_reasoning:
            return inner
        budget, marks = params.thinking_token_budget, params.reasoning_marks
        assert budget is not None and marks is not None
        return ThinkingMatcher(budget, marks, self._token_bytes(marks), inner, tokens)

    def _token_bytes(self, marks: ReasoningMarks) -> Callable[[int], bytes]:
        """What tokens write into an answer, in which special ones are seen where they are marks."""
        vocabulary = self._loaded_vocabulary()
        unseen = vocabulary.special_ids - {vocabulary.special_id(mark) for mark in (*marks.begins, *marks.ends)}
        return lambda token: b"" if token in unseen else vocabulary.token_bytes(token)

    @property
    def is_ready(self) -> bool:
        """Whether the vocabulary is here, which takes seconds at the first use."""
        return self._vocabulary is not None

    def get_ready(self) -> None:
        """Load it, before anybody waits for it.

        Raises:
            ModelLoadError, OSError: as ``load_vocabulary``.
        """
        self._loaded_vocabulary()

    def _loaded_vocabulary(self) -> Vocabulary:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load_vocabulary()
            return self._vocabulary

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile ``grammar``, or find it. Takes up to a second, and longer at the first use: not for the engine's thread.

        Raises:
            InvalidRequestError: it is not valid, or beyond the limits; says where.
        """
        if (known := self._find(grammar)) is not None:
            return known
        with self._compiling:
            if (known := self._find(grammar)) is not None:
                return known
            compiled = self._compile(grammar)
        with self._lock:
            self._known[grammar] = self._kept[grammar] = compiled
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return compiled

    def matcher(self, grammar: Grammar, tokens: Iterable[int] = ()) -> TokenMatcher:
        """A matcher behind ``tokens`` of an answer. Quick where somebody holds the compiled grammar."""
        copy = self.compile(grammar).matcher.copy()
        return TokenMatcher(copy, self._end_words, self._eos_token_ids, tokens)

    def _find(self, grammar: Grammar) -> CompiledGrammar | None:
        with self._lock:
            known = self._known.get(grammar)
            if known is not None and grammar in self._kept:
                self._kept.move_to_end(grammar)
            return known

    def _compile(self, grammar: Grammar, is_part: bool = False) -> CompiledGrammar:
        """As ``compile``. Of a grammar of parts, the refusal is that of its first part that is refused alone, if there is one."""
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            raise _refused(grammar, f"has {len(grammar.text)} characters, at most {MAX_GRAMMAR_CHARS} are allowed")
        if not self._eos_token_ids:
            raise _refused(grammar, "cannot be followed by this model: it has no token that ends an answer")
        if self._trie is None:
            try:
                vocabulary = self._loaded_vocabulary()
            except ModelLoadError as error:
                raise _refused(grammar, f"cannot be followed by this model: {error.message}") from error
            self._trie = TokenTrie(vocabulary, sorted(self._eos_token_ids))
        for part in (*grammar.parts, grammar):
            if part.white_space is not None:
                self._check_white_space(part.white_space)
        try:
            schema = json.loads(grammar.text) if grammar.kind == JSON_SCHEMA else None
            source, parts = library_grammar(grammar, self._loaded_vocabulary().special_id)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno} column {error.colno}"
            raise _refused(grammar, f"is not valid: no JSON at {where}") from None
        except WrongPart as error:
            raise _refused(grammar, f"is not valid: {error}", f"{grammar.param}.{error.where}") from None
        except (ValueError, RecursionError) as error:
            raise _refused(grammar, f"is not valid: {error}") from None
        for part in (*parts, grammar):
            if (multiple := too_fine_multiple(part.text)) is not None:
                says = f"is not supported: multipleOf {multiple} has too many remainders (at most {MOST_REMAINDERS} in a schema)"
                raise _refused(part, says)
        if "\0" in source:
            raise _refused(grammar, "is not valid: it has a character 0")
        matcher = NativeMatcher.compiled(self._trie, source, _LIMITS)
        if (failure := matcher.error) is not None:
            reason = placed_as_written(failure, source).strip()
            if grammar.kind == JSON_SCHEMA:
                place, reason = place_of_error(schema, reason, self._schema_error)
                at, param = ("", grammar.param + as_field(place)) if is_part else (f" at {place}", grammar.param)
                raise _refused(grammar, f"is not supported{at}: {reason}", param)
            raise self._part_at_fault(parts) or _refused(grammar, f"is not valid: {reason}")
        if (too_much := self._try_out(matcher.copy())) is not None:
            if (at_fault := self._part_at_fault(parts)) is not None:
                raise at_fault
            if too_much.startswith(_NO_ANSWER):
                raise _refused(grammar, "cannot be followed: no answer comes to an end under it")
            raise _refused(grammar, f"asks for more work than is allowed for a token: {too_much}")
        return CompiledGrammar(matcher)

    def _check_white_space(self, grammar: Grammar) -> None:
        """Raise InvalidRequestError unless ``grammar``, a regular expression, can stand between the tokens of JSON."""
        assert self._trie is not None
        trie, end = self._trie, min(self._eos_token_ids)

        def compiled(source: str) -> NativeMatcher:
            matcher = NativeMatcher.compiled(trie, source, _LIMITS)
            if (failure := matcher.error) is not None:
                raise _refused(grammar, f"is not valid: {failure.strip()}")
            return matcher

        def has_answer(source: str) -> bool:
            matcher = compiled(source)
            if matcher.fill(np.zeros(len(self._end_words), np.int32)):
                return True
            failure = (matcher.error or "").partition("\n")[0]
            if not failure.startswith(_NO_ANSWER):
                raise _refused(grammar, f"asks for more work than is allowed for a token: {failure}")
            return False

        def may_be_empty(pattern: str) -> bool:
            return compiled(llguidance.LLMatcher.grammar_from_regex(pattern)).consume(end)

        if "\0" in grammar.text:
            raise _refused(grammar, "is not valid: it has a character 0")
        try:
            why = cannot_be_followed(grammar.text, may_be_empty, has_answer)
        except ValueError as error:  # half a character
            raise _refused(grammar, f"is not valid: {error}") from None
        if why:
            raise _refused(grammar, f"is not supported: it {why}")

    def _schema_error(self, schema: object) -> str:
        """Why the library refuses a schema; empty if it does not."""
        assert self._trie is not None
        try:
            source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        except ValueError as error:
            return str(error)
        return grammar_error(self._trie, source, _LIMITS)

    def _part_at_fault(self, parts: Sequence[Grammar]) -> InvalidRequestError | None:
        for part in parts[:_MOST_PARTS]:
            try:
                self._compile(part, is_part=True)
            except InvalidRequestError as refusal:
                return refusal
        return None

    def _try_out(self, matcher: NativeMatcher) -> str | None:
        """Why the beginning of some answer, always the same one, is beyond the limits; None if it is not.

        The first mask of a grammar may take a hundred times as long as any later one; copies share what it learned of the
        vocabulary, so that the engine's thread need not.
        """
        words = np.zeros(len(self._end_words), np.int32)
        rng = np.random.default_rng(0)
        for _ in range(_TRIED_TOKENS):
            if not matcher.fill(words):
                return (matcher.error or "").partition("\n")[0]
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            if matcher.is_stopped or not len(allowed):
                return None
            matcher.consume(int(rng.choice(allowed)))
        return None


def library_grammar(grammar: Grammar, special_id: SpecialId = lambda text: None) -> tuple[str, Sequence[Grammar]]:
    """In the library's own form, and the parts that it is made of.

    Args:
        special_id: of a special token, by its text.

    Raises:
        ValueError: it is not even of its kind.
    """
    parts: Sequence[Grammar] = grammar.parts
    if grammar.kind == STRUCTURAL_TAG:
        source, of_tag = structural_tag_grammar(grammar.text, special_id)
        parts = [dataclasses.replace(part, param=f"{grammar.param}.{part.param}") for part in of_tag]
        source = llguidance.LLMatcher.grammar_from_lark(source)
    else:
        source = _library_grammar(grammar)
    # Terminals of a client's own grammar may be made of others.
    is_own = grammar.kind == LARK and not parts
    return without_forcing(source) if is_own or may_force_much(source) else source, parts


def _library_grammar(grammar: Grammar) -> str:
    if grammar.kind == JSON_SCHEMA:
        schema = json.loads(grammar.text)
        if not (isinstance(schema, dict) or schema is True):
            return llguidance.LLMatcher.grammar_from_json_schema(grammar.text)  # its compilation says what is wrong
        text = "{}" if schema is True else grammar.text
        if grammar.white_space is None:
            return llguidance.LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": JSON_WHITESPACE})
        # Before what a schema itself says of it.
        pattern = grammar.white_space.text
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": pattern})
    if grammar.kind == REGEX:
        return llguidance.LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == CHOICE:
        # One lexeme: as a rule of a grammar each text would be an item of its own in the parser.
        texts = "|".join(re.escape(text) for text in json.loads(grammar.text))
        return llguidance.LLMatcher.grammar_from_regex(texts)
    if grammar.kind == LARK:
        # What is made of parts is Lark's syntax; a client's own grammar may be EBNF, which is looked for line by line.
        return llguidance.grammar_from("lark" if grammar.parts else "grammar", grammar.text)
    raise ValueError(f"unknown kind {grammar.kind}")


def _refused(grammar: Grammar, what: str, param: str | None = None) -> InvalidRequestError:
    param = (param or grammar.param)[:_MAX_ERROR_CHARS]
    text = what if len(what) <= _MAX_ERROR_CHARS else what[:_MAX_ERROR_CHARS] + " …"
    return InvalidRequestError(f"{param}: the {grammar.kind} {text}", param, "invalid_grammar")
