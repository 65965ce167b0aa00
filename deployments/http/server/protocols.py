"""The protocols of uvicorn that are there: what is to hold for every connection is put around each of them."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

_PROTOCOLS = (
    ("uvicorn.protocols.http.h11_impl", "H11Protocol"),
    ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
)


def http_protocols() -> list[Any]:
    """Their classes."""
    found = []
    for module, name in _PROTOCOLS:
        with contextlib.suppress(ImportError):  # httptools is optional
            found.append(getattr(importlib.import_module(module), name))
    return found
