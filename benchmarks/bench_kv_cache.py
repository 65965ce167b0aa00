"""The CPU's KV cache by its type, in one run: steps at long contexts, their attention alone, and what rounding costs in quality.

    python -m benchmarks.bench_kv_cache [--rounds 5] [--weight-format stored]

The default model; types take turns, and figures are medians over rounds. Each row of a step has a context of its own, in
blocks that lie anywhere. Quality: as of ``benchmarks.bench_weight_formats``.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import paddle
import typer
from rich.console import Console
from rich.table import Table

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from actors.layers.batch_rows import BatchRows
from actors.model_files.source import resolve_model
from actors.models.decoder import Decoder
from benchmarks.bench_weight_formats import print_quality, token_ids
from cluster.config import DEFAULT_MODEL, EngineConfig
from gpu_ops import forward as ops
from gpu_ops.kv_cache import CPU_TYPES, kv_block_bytes

# Rows that decode together, and the positions that each sees.
CASES = ((1, 256), (1, 1024), (1, 4096), (8, 256), (8, 1024), (8, 4096))
# A prompt's last chunk: rows of one slot.
CHUNK, PROMPT, BLOCK = 256, 2048, 16
console = Console(width=max(120, Console().width))


def main(
    rounds: Annotated[int, typer.Option(help="Times every step is measured.")] = 5,
    weight_format: Annotated[str, typer.Option(help="Of the models whose steps are measured.")] = "stored",
) -> None:
    """Print the tables."""
    threads, source = len(os.sched_getaffinity(0)), resolve_model(DEFAULT_MODEL)

    def engines_of(weights: str) -> dict[str, Engine]:
        settings = {"num_threads": threads, "kv_cache_memory_gb": 0.5, "weight_format": weights}
        return {dtype: load_engine(EngineConfig(kv_cache_dtype=dtype, **settings)) for dtype in CPU_TYPES}

    engines = engines_of(weight_format)
    models = {dtype: engine.executor.model for dtype, engine in engines.items()}
    whole = Table(f"tokens/s of a step, weights {weight_format}", *heads())
    alone = Table("its attention alone, ms (GB/s)", *heads())
    for rows, context in CASES:
        steps = {dtype: Step(model, np.full(rows, context - 1), np.arange(rows)) for dtype, model in models.items()}
        add_row(whole, f"{rows} rows at {context}", in_turns({d: s.run for d, s in steps.items()}, rounds), rows)
        seconds = in_turns({dtype: step.attend for dtype, step in steps.items()}, rounds)
        cells = [f"{1e3 * s:.2f} ({steps[dtype].num_bytes / s / 1e9:.1f})" for dtype, s in seconds.items()]
        ratios = [f"{seconds['float32'] / seconds[dtype]:.2f}" for dtype in CPU_TYPES[1:]]
        alone.add_row(f"{rows} rows at {context}", *cells, *ratios)
    last = np.arange(PROMPT - CHUNK, PROMPT)
    chunks = {dtype: Step(model, last, np.zeros(CHUNK, int)).run for dtype, model in models.items()}
    add_row(whole, f"{CHUNK} of a prompt, up to {PROMPT}", in_turns(chunks, rounds), CHUNK)
    console.print(whole)
    console.print(alone)
    for engine in engines.values():
        engine.close()
    exact = engines_of("float32")
    print_quality(exact, source)
    for engine in exact.values():
        engine.close()


def heads() -> list[str]:
    return [*CPU_TYPES, *(f"{dtype} to float32" for dtype in CPU_TYPES[1:])]


def add_row(table: Table, what: str, seconds: dict[str, float], tokens: int) -> None:
    rates = {dtype: tokens / value for dtype, value in seconds.items()}
    ratios = [f"{rates[dtype] / rates['float32']:.2f}" for dtype in CPU_TYPES[1:]]
    table.add_row(what, *(f"{rate:.1f}" for rate in rates.values()), *ratios)


def in_turns(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; the first one does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            # What lives long costs a collection time that belongs to nobody's step.
            gc.collect()
            started = time.perf_counter()
            call()
            if number:
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in found.items()}


class Step:
    """A step of rows at ``positions`` of ``slots``, whose caches hold random keys and values up to there.

    Attributes:
        num_bytes: what attention reads of the caches of all layers, at the least.
    """

    def __init__(self, model: Decoder, positions: np.ndarray, slots: np.ndarray) -> None:
        rng, config, device = np.random.default_rng(0), model.config, model.device
        self._model, num_slots, context = model, int(slots.max()) + 1, int(positions.max()) + 1
        self._heads = config.num_heads, config.num_kv_heads
        blocks_each = -(-context // BLOCK)
        tables = rng.permutation(num_slots * blocks_each).reshape(num_slots, -1).astype(np.int32)
        ids = np.array(token_ids(len(positions)))
        self._rows = BatchRows(*map(device.tensor, (ids, positions.astype(np.int32), slots.astype(np.int32), tables)))
        self._cache = model.allocate_kv_cache(num_slots * blocks_each, BLOCK)
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        qkv = device.tensor(rng.standard_normal((context, width), dtype=np.float32))
        every = device.tensor(np.arange(context, dtype=np.int32))
        for slot in range(num_slots):
            own = device.tensor(np.full(context, slot, np.int32))
            for cache in self._cache:
                ops.rotary_kv_write(qkv, model.cos_sin, every, own, self._rows.block_tables, *cache, *self._heads)
        self._queries = qkv[: len(positions)].clone()
        block_bytes = kv_block_bytes(BLOCK, config.num_kv_heads, config.head_dim, device.kv_cache_dtype)
        self.num_bytes = config.num_layers * num_slots * blocks_each * block_bytes

    def run(self) -> None:
        with paddle.no_grad():
            self._model.compute_logits(self._model.forward(self._rows, self._cache))

    def attend(self) -> None:
        rows = self._rows
        for cache in self._cache:
            ops.paged_attention(
                self._queries, *cache, rows.block_tables, rows.positions, rows.slots, *self._heads,
                self._model.layers[0].attention.scale,
            )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
