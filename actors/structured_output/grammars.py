"""Grammars of requests: compiled once, kept while requests have them, bounded in size and work."""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import llguidance
import numpy as np

from actors.structured_output.matcher import TokenMatcher
from actors.structured_output.schema_place import place_of_error
from actors.structured_output.token_trie import token_trie
from actors.text.tokenizer import Tokenizer
from cluster.errors import InvalidRequestError, ModelLoadError
from cluster.grammar import CHOICE, JSON_SCHEMA, LARK, MAX_GRAMMAR_CHARS, REGEX, Grammar

# How many are kept that no request has.
_KEPT = 64
# Work, not time, so that a request meets them on every machine or on none: about 20 ms to compile, 15 ms a token. A state of the
# lexer takes a kilobyte or two.
_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# What an error says of a grammar; the library's own may quote all of it.
_MAX_ERROR_CHARS = 500


class CompiledGrammar:
    """A grammar at its beginning; whoever wants it to stay compiled holds this.

    Args:
        matcher: as compiled; copies of it share what they learn of the vocabulary.
    """

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher


class Grammars:
    """Compiles; safe to use from several threads.

    Args:
        load_tokenizer: called at the first use.
        vocab_size: of the model, in logits.
        eos_token_ids: what the engine stops at.
    """

    def __init__(self, load_tokenizer: Callable[[], Tokenizer], vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._trie: llguidance.LLTokenizer | None = None
        allowed = np.zeros(32 * ((vocab_size + 31) // 32), bool)
        allowed[list(eos_token_ids)] = True
        self._end_words = np.packbits(allowed, bitorder="little").view(np.int32)
        self._known: weakref.WeakValueDictionary[Grammar, CompiledGrammar] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

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
        copy = self.compile(grammar).matcher.deep_copy()
        return TokenMatcher(copy, self._end_words, self._eos_token_ids, tokens)

    def _find(self, grammar: Grammar) -> CompiledGrammar | None:
        with self._lock:
            known = self._known.get(grammar)
            if known is not None and grammar in self._kept:
                self._kept.move_to_end(grammar)
            return known

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            raise _refused(grammar, f"has {len(grammar.text)} characters, at most {MAX_GRAMMAR_CHARS} are allowed")
        if not self._eos_token_ids:
            raise _refused(grammar, "cannot be followed by this model: it has no token that ends an answer")
        if self._trie is None:
            try:
                tokenizer = self._load_tokenizer()
            except ModelLoadError as error:
                raise _refused(grammar, f"cannot be followed by this model: {error.message}") from error
            self._trie = token_trie(tokenizer, self._vocab_size, sorted(self._eos_token_ids))
        try:
            schema = json.loads(grammar.text) if grammar.kind == JSON_SCHEMA else None
            source = library_grammar(grammar)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno} column {error.colno}"
            raise _refused(grammar, f"is not valid: no JSON at {where}") from None
        except (ValueError, RecursionError) as error:
            raise _refused(grammar, f"is not valid: {error}") from None
        matcher = llguidance.LLMatcher(self._trie, source, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            reason = matcher.get_error().strip()
            if grammar.kind == JSON_SCHEMA:
                place, reason = place_of_error(schema, reason, _schema_error)
                raise _refused(grammar, f"is not supported at {place}: {reason}")
            raise _refused(grammar, f"is not valid: {reason}")
        return CompiledGrammar(matcher)


def library_grammar(grammar: Grammar) -> str:
    """In the library's own form.

    Raises:
        ValueError: it is not even of its kind.
    """
    if grammar.kind == JSON_SCHEMA:
        return llguidance.LLMatcher.grammar_from_json_schema(grammar.text)
    if grammar.kind == REGEX:
        return llguidance.LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == CHOICE:
        return llguidance.grammar_from("choice", grammar.text)
    if grammar.kind == LARK:
        return llguidance.grammar_from("grammar", grammar.text)
    raise ValueError(f"unknown kind {grammar.kind}")


def _schema_error(schema: object) -> str:
    """Why the library refuses a schema; empty if it does not."""
    try:
        source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        return str(error)
    return llguidance.LLMatcher.validate_grammar(source, limits=_LIMITS)


def _refused(grammar: Grammar, what: str) -> InvalidRequestError:
    text = what if len(what) <= _MAX_ERROR_CHARS else what[:_MAX_ERROR_CHARS] + " …"
    return InvalidRequestError(f"{grammar.param}: the {grammar.kind} {text}", grammar.param, "invalid_grammar")
