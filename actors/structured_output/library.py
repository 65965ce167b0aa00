"""Which release of the grammar library is here; known without loading it."""

from __future__ import annotations

import functools
import importlib.metadata


@functools.cache
def library_version() -> str:
    return "llguidance " + importlib.metadata.version("llguidance")
