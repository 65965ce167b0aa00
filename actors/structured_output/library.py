"""What decides which tokens may come under a grammar or a budget, beside the request; known without loading the library."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

_HERE = Path(__file__).parent
# Code elsewhere that has a say in it: what a grammar is, what marks reasoning, what tokens write.
_BESIDES = ("cluster/grammar.py", "cluster/reasoning.py", "actors/text/vocabulary.py", "actors/text/token_bytes.py")


def library_version() -> str:
    """Release of the grammar library."""
    return "llguidance " + importlib.metadata.version("llguidance")


@functools.cache
def grammar_rules() -> str:
    """Hash of the library's release and of the code that uses it."""
    rules = hashlib.sha256(library_version().encode())
    for file in (*sorted(_HERE.glob("*.py")), *(_HERE.parents[1] / name for name in _BESIDES)):
        rules.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return rules.hexdigest()
