"""Closed loops of the project's own load client against a served application: prompts of token ids, answers of given lengths."""

from __future__ import annotations

import json
from typing import Any, Protocol

from cluster.bench.connection import Target
from cluster.bench.lengths import Lengths
from cluster.bench.load import Load
from cluster.bench.plan import Shape, make_requests
from cluster.bench.processes import Result
from cluster.bench.prompts import PromptKind

_FOREVER_S = 600.0
Tokens = int | tuple[int, int]


class Served(Protocol):
    """Where a load goes.

    Attributes:
        url: without /v1.
        model: the name under which clients ask for it.
    """

    url: str
    model: str


def closed_loop(
    app: Served,
    streams: int,
    tokens: tuple[Tokens, Tokens],
    seed: int,
    requests: int | None = None,
    seconds: float = _FOREVER_S,
    **more: Any,
) -> Load:
    """A load of ``streams`` that ask again when they are answered.

    Args:
        tokens: of a prompt, and of its answer; two bounds: evenly between them.
        seed: loads of different seeds have no prompt in common.
        requests: how many; None: until ``seconds`` are over.
        more: other fields of the requests.
    """
    prompt, answer = map(_lengths, tokens)
    fields: dict[str, Any] = {
        "model": app.model,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    return Load(
        Target(app.url, "/v1/completions"), json.dumps(fields)[1:-1], False, PromptKind(False, seed),
        make_requests(Shape(seed, prompt, answer, requests), seconds, 2 * streams), streams, seconds, requests is None,
    )  # fmt: skip


def _lengths(tokens: Tokens) -> Lengths:
    if isinstance(tokens, int):
        return Lengths("fixed", (float(tokens),))
    return Lengths("uniform", (float(tokens[0]), float(tokens[1])))


def checked(result: Result) -> Result:
    """``result``, of which nothing failed.

    Raises:
        RuntimeError: something did; the first reason.
    """
    errors = [sample.error for sample in result.samples if sample.error is not None]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed, the first with: {errors[0]}")
    return result
