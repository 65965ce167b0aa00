"""Clients of engines in this process (``local_engines``): what each is answered, and what it would be answered alone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cluster.api_errors import ApiError
from cluster.grammar import Grammar
from cluster.journal import JournalEntry
from cluster.outputs import TokenDelta
from cluster.sampling_params import SamplingParams
from deployments.routing.engine_client import EngineClient
from tests.engines import make_engine, request

MAX_TOKENS = 30


class Answer:
    """What a client gets of one sequence."""

    def __init__(self, client: EngineClient, name: str, prompt: list[int], grammar: Grammar | None = None) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.first_at: float | None = None
        self.ended: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()
        params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, temperature=1.0, seed=7, grammar=grammar)
        entry = JournalEntry(name, prompt, params, client.subscriber)
        self.submission = client.submit(entry, self._deliver, self.ended.set_result)

    def _deliver(self, delta: TokenDelta) -> None:
        self.first_at = self.first_at or time.monotonic()
        self.tokens += delta.token_ids
        if delta.finish_reason is not None:
            self.ended.set_result(None)


def start_many(client: EngineClient, count: int, prefix: str = "r") -> list[Answer]:
    """As many requests, each with a prompt of its own."""
    return [Answer(client, f"{prefix}{number}", [number % 100 + 1] * 5) for number in range(count)]


def expected(folder: Path, answers: list[Answer]) -> list[list[int]]:
    """Each alone."""
    engine = make_engine(folder)
    params = {"max_tokens": MAX_TOKENS, "ignore_eos": True, "temperature": 1.0, "seed": 7}
    outputs = [engine.generate([request(str(n), a.prompt, **params)])[str(n)] for n, a in enumerate(answers)]
    engine.close()
    return [[token for delta in deltas for token in delta.token_ids] for deltas in outputs]
