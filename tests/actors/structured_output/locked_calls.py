"""Calls of the grammar library that hold the interpreter's lock: while one runs, every other thread of the process stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import llguidance

from actors.structured_output import grammars, native

# What ctypes says of a function that is called with the lock.
_WITH_LOCK = 4
# Of the library's Python classes; all of them hold it.
_OF_MATCHER = ("grammar_from_json_schema", "grammar_from_regex", "grammar_from_lark")


@contextlib.contextmanager
def wrapped(wrap: Callable[[Callable[..., Any], str], Callable[..., Any]]) -> Iterator[None]:
    """``wrap`` gets each of those functions and its name, and says what is called instead."""
    library = native._library()
    with contextlib.ExitStack() as stack:
        for name, function in list(vars(library).items()):
            if getattr(type(function), "_flags_", 0) & _WITH_LOCK:
                stack.enter_context(mock.patch.object(library, name, wrap(function, name)))
        functions = {name: wrap(getattr(llguidance.LLMatcher, name), name) for name in _OF_MATCHER}
        instead = SimpleNamespace(LLMatcher=SimpleNamespace(**functions), grammar_from=llguidance.grammar_from)
        stack.enter_context(mock.patch.object(grammars, "llguidance", instead))
        yield
