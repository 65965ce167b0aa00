"""The default model from its stored weights and from float32, in one run: tokens per second, and what rounding costs in quality.

    python -m benchmarks.bench_weight_formats [--rounds 3] [--llama-bench PROGRAM]

Engines run in this process and take turns; figures are medians over rounds. PROGRAM is llama.cpp's llama-bench, which then takes
its turn with as many threads. Quality: perplexity of a text of Python's documentation (``pydoc_data``), and the divergence of the
next token's distribution from float32's at each of its positions.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import subprocess
import time
from pydoc_data.topics import topics
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from actors.layers.batch_rows import BatchRows
from actors.model_files.source import resolve_model
from actors.text.tokenizer import load_tokenizer
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

ROWS = (1, 2, 4, 8, 16)
DECODED, PROMPT = 48, 512
TEXT_TOKENS, CHUNK, BLOCK = 1024, 128, 16
FORMATS = ("float32", "stored")
console = Console(width=max(100, Console().width))


def main(
    rounds: Annotated[int, typer.Option(help="Times every engine runs.")] = 3,
    llama_bench: Annotated[str, typer.Option(help="llama.cpp's llama-bench.")] = "",
) -> None:
    """Print both tables."""
    threads, source = len(os.sched_getaffinity(0)), resolve_model(DEFAULT_MODEL)
    engines = {
        name: load_engine(EngineConfig(weight_format=name, num_threads=threads, max_num_batched_tokens=PROMPT))
        for name in FORMATS
    }
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, engine in engines.items():
            # What lives long costs a collection time that belongs to nobody's step.
            gc.collect()
            for rows in ROWS:
                found.setdefault(f"decode, {rows} rows", {}).setdefault(name, []).append(decode(engine, rows))
            found.setdefault(f"prompt of {PROMPT}", {}).setdefault(name, []).append(prompt(engine))
        if llama_bench:
            for name, value in run_llama(llama_bench, str(source.path), threads).items():
                found.setdefault(name, {}).setdefault("llama.cpp", []).append(value)
    table = Table("tokens/s", *FORMATS, "ratio", *(["llama.cpp", "stored to it"] if llama_bench else []))
    for what, values in found.items():
        dense, stored, other = (statistics.median(values.get(name, [0.0])) for name in (*FORMATS, "llama.cpp"))
        cells = [f"{dense:.0f}", f"{stored:.0f}", f"{stored / dense:.2f}"]
        table.add_row(what, *cells, *([f"{other:.0f}", f"{stored / other:.2f}"] if other else []))
    console.print(table)
    print_quality(engines, source)
    for engine in engines.values():
        engine.close()


def token_ids(count: int) -> list[int]:
    return [random.randrange(100, 40_000) for _ in range(count)]


def decode(engine: Engine, rows: int) -> float:
    """Tokens per second of steps in which every row decodes."""
    params = SamplingParams(temperature=0.0, max_tokens=DECODED, ignore_eos=True)
    for i in range(rows):
        engine.add_request(EngineRequest(f"r{i}", token_ids(8), params))
    begun: set[str] = set()
    while len(begun) < rows:
        begun |= {delta.request_id for delta in engine.step() if delta.token_ids}
    started, count = time.perf_counter(), 0
    while engine.has_work():
        count += sum(len(delta.token_ids) for delta in engine.step())
    return count / (time.perf_counter() - started)


def prompt(engine: Engine) -> float:
    started = time.perf_counter()
    engine.generate([EngineRequest("p", token_ids(PROMPT), SamplingParams(temperature=0.0, max_tokens=1))])
    return PROMPT / (time.perf_counter() - started)


def run_llama(program: str, model: str, threads: int) -> dict[str, float]:
    command = [program, "-m", model, "-t", str(threads), "-p", str(PROMPT), "-n", str(DECODED), "-r", "1", "-o", "json"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {f"prompt of {PROMPT}" if one["n_prompt"] else "decode, 1 rows": one["avg_ts"] for one in json.loads(output)}


def print_quality(engines: dict[str, Engine], source) -> None:
    ids = np.array(load_tokenizer(source).encode(topics["types"])[:TEXT_TOKENS])
    logs = {name: log_probabilities(engine, ids) for name, engine in engines.items()}
    dense = logs["float32"]
    table = Table("on a text", "perplexity", "KL divergence, mean", "99 %", "same first choice")
    for name, log in logs.items():
        perplexity = np.exp(-log[np.arange(len(ids) - 1), ids[1:]].mean())
        divergence = (np.exp(dense) * (dense - log)).sum(axis=1)
        same = (log.argmax(axis=1) == dense.argmax(axis=1)).mean()
        table.add_row(
            name, f"{perplexity:.3f}", f"{divergence.mean():.5f}", f"{np.quantile(divergence, 0.99):.4f}", f"{same:.1%}"
        )
    console.print(table)


def log_probabilities(engine: Engine, ids: np.ndarray) -> np.ndarray:
    """Of the token after each position, float64 [T, vocab_size]."""
    model, device = engine.executor.model, engine.executor.model.device
    num_blocks = -(-len(ids) // BLOCK)
    cache, tables = (
        model.allocate_kv_cache(num_blocks, BLOCK),
        device.tensor(np.arange(num_blocks, dtype=np.int32)[None]),
    )
    found = []
    for start in range(0, len(ids), CHUNK):
        positions = np.arange(start, min(start + CHUNK, len(ids)), dtype=np.int32)
        slots = device.tensor(np.zeros(len(positions), np.int32))
        rows = BatchRows(device.tensor(ids[positions].astype(np.int64)), device.tensor(positions), slots, tables)
        logits = model.compute_logits(model.forward(rows, cache)).numpy().astype(np.float64)
        found.append(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return np.concatenate(found)


if __name__ == "__main__":
    typer.run(main)
