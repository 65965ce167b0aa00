"""Bireme's library: ``from bireme import LLM, SamplingParams, Client, AsyncClient``.

Names are loaded when they are first used: ``import bireme`` loads neither Ray nor Paddle.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster import __version__ as __version__
    from cluster.client import AsyncClient as AsyncClient
    from cluster.client import Client as Client
    from cluster.sampling_params import SamplingParams as SamplingParams
    from deployments.offline.llm import LLM as LLM
    from deployments.offline.outputs import CompletionOutput as CompletionOutput
    from deployments.offline.outputs import RequestOutput as RequestOutput

_WHERE = {
    "AsyncClient": "cluster.client",
    "Client": "cluster.client",
    "CompletionOutput": "deployments.offline.outputs",
    "LLM": "deployments.offline.llm",
    "RequestOutput": "deployments.offline.outputs",
    "SamplingParams": "cluster.sampling_params",
    "__version__": "cluster",
    "main": "bireme.__main__",  # the command
}
__all__ = ["LLM", "AsyncClient", "Client", "CompletionOutput", "RequestOutput", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bireme' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
