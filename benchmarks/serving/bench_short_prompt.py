"""How long a short prompt that arrives behind a long one waits for its first token, and how much later the long one gets its own.

    python -m benchmarks.serving.bench_short_prompt [--rounds 3] [--long 3000] [--short 6] [--after 0.7]

The default model in this process, through the engine's loop; no prompt is found in the cache.
"""

from __future__ import annotations

import os
import queue
import statistics
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from actors.engine.loading import load_engine
from actors.engine.loop import EngineLoop
from actors.engine.warm_up import warm_up
from cluster.config import EngineConfig
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams


class FirstTokens:
    """An engine that is asked for one token of each prompt."""

    def __init__(self) -> None:
        self._published: queue.SimpleQueue = queue.SimpleQueue()
        self._engine = load_engine(EngineConfig(num_threads=len(os.sched_getaffinity(0))))
        warm_up(self._engine)
        self._loop = EngineLoop(
            self._engine,
            lambda deltas: self._published.put((time.perf_counter(), deltas)),
            lambda error: self._published.put(error),
        )
        self._count = 0

    def measure(self, lengths: list[int], apart_s: float) -> list[float]:
        """Seconds to the first token of prompts of ``lengths``, each of which comes ``apart_s`` after the one before."""
        asked: dict[str, float] = {}
        for i, length in enumerate(lengths):
            time.sleep(apart_s if i else 0)
            self._count += 1
            name = str(self._count)
            asked[name] = time.perf_counter()
            prompt = [(7919 * self._count + 104729 * i) % 40_000 + 100 for i in range(length)]
            self._loop.submit(EngineRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=1)))
        waits: dict[str, float] = {}
        while len(waits) < len(asked):
            item = self._published.get()
            if isinstance(item, BaseException):
                raise item
            at, deltas = item
            waits.update({delta.request_id: at - asked[delta.request_id] for delta in deltas})
        return [waits[name] for name in asked]

    def close(self) -> None:
        self._loop.close()


def main(
    rounds: Annotated[int, typer.Option(help="Times everything is measured.")] = 3,
    long: Annotated[int, typer.Option(help="Tokens of the long prompt.")] = 3000,
    short: Annotated[int, typer.Option(help="Tokens of the short prompt.")] = 6,
    after: Annotated[float, typer.Option(help="Seconds from the long prompt to the short one.")] = 0.7,
) -> None:
    """Print medians over rounds."""
    engine = FirstTokens()
    cases = {"alone": ([long], [short]), "the short one behind": ([long, short],)}
    waits: dict[str, list[list[float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, runs in cases.items():
            waits[name].append([wait for lengths in runs for wait in engine.measure(lengths, after)])
    engine.close()
    table = Table("first token, p50 of rounds", f"{long} tokens", f"{short} tokens")
    for name, seconds in waits.items():
        table.add_row(name, *(f"{statistics.median(column):.3f} s" for column in zip(*seconds, strict=True)))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
