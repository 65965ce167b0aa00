"""The grammar library by its C interface: a trie of a vocabulary, and matchers of grammars over it.

Its Python classes hold the interpreter's lock while they make a trie, a third of a second for 128,000 tokens, and they want the
tokenizer itself, whose loading holds it longer. They ask it for the tokens of text that a grammar forces; here these are the
longest that there are, each behind the one before, which for most words are the tokenizer's own.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

import llguidance
import numpy as np
from llguidance import _lib

from actors.text.vocabulary import Vocabulary

# The library's mark of a token that no text of a grammar matches.
_SPECIAL = b"\xff"
_MAX_ERROR_BYTES = 2000
_SPARE_BYTES = 256
_UNTOUCHED = [0xA5] * _SPARE_BYTES


_LIMITS: list[tuple[str, type]] = [
    ("max_items_in_row", c_size_t),
    ("initial_lexer_fuel", c_uint64),
    ("step_lexer_fuel", c_uint64),
    ("step_max_items", c_size_t),
    ("max_lexer_states", c_size_t),
    ("max_grammar_size", c_size_t),
    ("precompute_large_lexemes", c_bool),
    ("verbose_errors", c_bool),
]


class _Limits(ctypes.Structure):
    _fields_ = _LIMITS


class _MatcherSettings(ctypes.Structure):
    _fields_ = [
        ("tokenizer", c_void_p),
        ("log_buffer_level", c_uint32),
        ("log_stderr_level", c_uint32),
        ("ff_tokens_ok", c_bool),
        ("backtrack_ok", c_bool),
        ("limits", _Limits),
        # A release with more settings writes them here, and is found out.
        ("spare", c_uint8 * _SPARE_BYTES),
    ]


class _TrieSettings(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("vocab_size", c_uint32),
        ("tok_eos", c_uint32),
        ("token_lens", c_void_p),
        ("token_bytes", c_void_p),
        ("tokenizer_json", c_char_p),
        ("tokenize_assumes_string", c_bool),
        ("tokenize_fn", c_void_p),
        ("use_approximate_greedy_tokenize_fn", c_bool),
        ("tokenize_user_data", c_void_p),
        ("slices", c_void_p),
        ("tok_eos_extra", c_void_p),
        ("tok_eos_extra_count", c_uint32),
    ]


class _Library:
    """Functions of the library. Those that may take long let other threads run, those that take microseconds do not: to get the
    interpreter's lock back may take longer."""

    def __init__(self) -> None:
        long, short = ctypes.CDLL(_lib.__file__), ctypes.PyDLL(_lib.__file__)
        self.new_trie = _typed(long.llg_new_tokenizer_v2, c_void_p, POINTER(_TrieSettings), c_char_p, c_size_t)
        # Of the kind that ``tokenize_fn`` is, called by the library itself.
        self.longest_tokens = ctypes.cast(long.llg_tokenize_bytes, c_void_p)
        self.free_trie = _typed(long.llg_free_tokenizer, None, c_void_p)
        self.set_defaults = _typed(short.llg_constraint_init_set_defaults, None, POINTER(_MatcherSettings), c_void_p)
        self.new_matcher = _typed(long.llg_new_matcher, c_void_p, POINTER(_MatcherSettings), c_char_p, c_char_p)
        self.validate = _typed(
            long.llg_validate_grammar, c_int32, POINTER(_MatcherSettings), c_char_p, c_char_p, c_char_p, c_size_t
        )
        self.clone = _typed(short.llg_clone_matcher, c_void_p, c_void_p)
        self.free_matcher = _typed(short.llg_free_matcher, None, c_void_p)
        self.fill = _typed(long.llg_matcher_compute_mask_into, c_int32, c_void_p, c_void_p, c_size_t)
        self.consume = _typed(short.llg_matcher_consume_token, c_int32, c_void_p, c_uint32)
        self.is_stopped = _typed(short.llg_matcher_is_stopped, c_bool, c_void_p)
        self.consume_address, self.fill_address = _address(self.consume), _address(self.fill)
        self.error = _typed(short.llg_matcher_get_error, c_char_p, c_void_p)


def _typed(function: Any, result: type | None, *arguments: type) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


def _address(function: Any) -> int:
    return ctypes.cast(function, c_void_p).value or 0


@functools.cache
def _library() -> _Library:
    library, settings, known = _Library(), _MatcherSettings(), llguidance.LLParserLimits()
    settings.spare[:] = _UNTOUCHED
    library.set_defaults(settings, None)
    # The layout of settings is not versioned: what the library writes there must be what its Python classes say.
    names = [name for name, _ in _LIMITS]
    found = {name: getattr(settings.limits, name) for name in names}
    if found != {name: getattr(known, name) for name in names} or list(settings.spare) != _UNTOUCHED:
        raise ImportError(f"llguidance {llguidance.__version__} has another C interface than this server knows")
    return library


class TokenTrie:
    """A trie of a model's tokens; a third of a second for a large vocabulary, in which other threads run.

    Args:
        eos_token_ids: what the engine stops at; a grammar that may end allows them.
    """

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: Sequence[int]) -> None:
        self._handles: list[int] = []
        self._free = _library().free_trie
        lengths, text = _with_special_marks(vocabulary)
        others = np.array(eos_token_ids[1:], np.uint32)
        settings = _TrieSettings(
            struct_size=ctypes.sizeof(_TrieSettings),
            vocab_size=len(lengths),
            tok_eos=eos_token_ids[0],
            token_lens=lengths.ctypes.data,
            token_bytes=text.ctypes.data,
            tok_eos_extra=others.ctypes.data,
            tok_eos_extra_count=len(others),
        )
        # A plain one finds longest tokens for the other, which has what makes masks quick.
        no_slices = c_void_p()
        settings.use_approximate_greedy_tokenize_fn, settings.slices = True, ctypes.addressof(no_slices)
        plain = self._made(settings)
        settings.use_approximate_greedy_tokenize_fn, settings.slices = False, None
        settings.tokenize_fn, settings.tokenize_user_data = _library().longest_tokens, plain
        self.handle = self._made(settings)

    def _made(self, settings: _TrieSettings) -> int:
        error = ctypes.create_string_buffer(_MAX_ERROR_BYTES)
        handle = _library().new_trie(settings, error, len(error))
        if not handle:
            raise ValueError(error.value.decode(errors="replace"))
        self._handles.append(handle)
        return handle

    def __del__(self) -> None:
        # The last one made uses the first.
        while self._handles:
            self._free(self._handles.pop())


def _with_special_marks(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    lengths = vocabulary.lengths.copy()
    begins = np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))
    special = np.array(sorted(vocabulary.special_ids), np.int64)
    lengths[special] += len(_SPECIAL)
    # At least a byte, so that there is an address.
    text = np.insert(vocabulary.text, begins[special], _SPECIAL[0])
    return lengths, np.ascontiguousarray(text if len(text) else np.zeros(1, np.uint8))


def grammar_error(trie: TokenTrie, grammar: str, limits: llguidance.LLParserLimits) -> str:
    """Why ``grammar`` cannot be compiled, which is not done; empty if it can. Lets other threads run, as its Python function does
    not."""
    message = ctypes.create_string_buffer(_MAX_ERROR_BYTES)
    settings = _settings(trie, limits)
    refused = _library().validate(settings, _kind(grammar), grammar.encode(), message, len(message)) < 0
    return message.value.decode(errors="replace") if refused else ""


def _settings(trie: TokenTrie, limits: llguidance.LLParserLimits) -> _MatcherSettings:
    settings = _MatcherSettings()
    _library().set_defaults(settings, trie.handle)
    settings.log_buffer_level = settings.log_stderr_level = 0
    settings.limits = _Limits(*(getattr(limits, name) for name, _ in _LIMITS))
    return settings


def _kind(grammar: str) -> bytes:
    return b"llguidance" if grammar.lstrip().startswith("{") else b"lark"


class NativeMatcher:
    """One answer under a grammar.

    Args:
        handle: the library's, which ends with this.
    """

    def __init__(self, trie: TokenTrie, handle: int) -> None:
        self._library, self._handle, self._trie = _library(), handle, trie
        # Of the functions behind ``consume`` and ``fill``, and of what these are called with.
        self.addresses = self._library.consume_address, self._library.fill_address, handle

    @classmethod
    def compiled(cls, trie: TokenTrie, grammar: str, limits: llguidance.LLParserLimits) -> NativeMatcher:
        """One at the beginning of an answer under ``grammar``: Lark's syntax, or the library's JSON."""
        return cls(trie, _library().new_matcher(_settings(trie, limits), _kind(grammar), grammar.encode()))

    def copy(self) -> NativeMatcher:
        """Another one where this one stands, with all that this one has learned of the vocabulary."""
        return NativeMatcher(self._trie, self._library.clone(self._handle))

    def __del__(self) -> None:
        self._library.free_matcher(self._handle)

    @property
    def error(self) -> str | None:
        """Why it cannot go on; None if it can."""
        text = self._library.error(self._handle)
        return None if text is None else text.decode(errors="replace")

    @property
    def is_stopped(self) -> bool:
        """Nothing but an end may come."""
        return self._library.is_stopped(self._handle)

    def fill(self, words: np.ndarray) -> bool:
        """Write into int32 [words] which tokens may come next. Lets other threads run. False: it cannot go on."""
        return self._library.fill(self._handle, words.ctypes.data, words.nbytes) == 0

    def consume(self, token: int) -> bool:
        """``token`` was taken. False: it was not allowed, or it cannot go on."""
        return self._library.consume(self._handle, token) == 0
