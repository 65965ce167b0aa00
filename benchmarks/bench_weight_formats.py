"""The default model from its stored weights and from float32, in one run: tokens per second, and what rounding costs in quality.

    python -m benchmarks.bench_weight_formats [--rounds 3] [--rows "1 2 4 8 16"] [--llama-batched-bench PROGRAM] [--json FILE]

Engines run in this process and take turns; figures are medians over rounds. PROGRAM is llama.cpp's llama-batched-bench, which
then takes its turn with as many threads, all sequences of a row of the table in one batch. A step of one row is compared with
reading the weights once. Quality: perplexity of a text of Python's documentation (``pydoc_data``), and the divergence of the
next token's distribution from float32's at each of its positions.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import statistics
import subprocess
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from actors.device.host_tensor import host_view
from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from actors.layers.batch_rows import BatchRows
from actors.model_files.source import resolve_model
from actors.text.tokenizer import load_tokenizer
from benchmarks.machine_peaks import MachinePeaks
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

DECODED, PROMPT = 48, 512
TEXT_TOKENS, CHUNK, BLOCK = 1024, 128, 16
FORMATS = ("float32", "stored")
console = Console(width=max(100, Console().width))


def main(
    rounds: Annotated[int, typer.Option(help="Times every engine runs.")] = 3,
    rows: Annotated[
        str, typer.Option(help="Sequences that decode together, one number after the other.")
    ] = "1 2 4 8 16",
    llama_batched_bench: Annotated[str, typer.Option(help="llama.cpp's llama-batched-bench.")] = "",
    model: Annotated[str, typer.Option(help="A GGUF file, or the default model.")] = DEFAULT_MODEL,
    quality: Annotated[bool, typer.Option(help="The table of quality as well.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where the figures go, for docs/lab/draw_rows.py.")
    ] = None,
) -> None:
    """Print both tables."""
    counts = [int(count) for count in rows.split()]
    threads, source = len(os.sched_getaffinity(0)), resolve_model(model)
    settings = {"num_threads": threads, "max_num_batched_tokens": PROMPT, "max_num_seqs": max(counts), "device": "cpu"}
    engines = {name: load_engine(EngineConfig(model=model, weight_format=name, **settings)) for name in FORMATS}
    machine = f"{threads} threads of {cpu_name()}; load {os.getloadavg()[0]:.1f} before"
    console.print(machine)
    if llama_batched_bench:
        say_build(llama_batched_bench)
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, engine in engines.items():
            # What lives long costs a collection time that belongs to nobody's step.
            gc.collect()
            for count in counts:
                found.setdefault(f"decode, {count} rows", {}).setdefault(name, []).append(decode(engine, count))
            found.setdefault(f"prompt of {PROMPT}", {}).setdefault(name, []).append(prompt(engine))
        if llama_batched_bench:
            for name, value in run_llama(llama_batched_bench, source.path, threads, counts).items():
                found.setdefault(name, {}).setdefault("llama.cpp", []).append(value)
    table = Table("tokens/s", *FORMATS, "ratio", *(["llama.cpp", "stored to it"] if llama_batched_bench else []))
    for what, values in found.items():
        dense, stored, other = (statistics.median(values.get(name, [0.0])) for name in (*FORMATS, "llama.cpp"))
        cells = [f"{dense:.0f}", f"{stored:.0f}", f"{stored / dense:.2f}"]
        table.add_row(what, *cells, *([f"{other:.0f}", f"{stored / other:.2f}"] if other else []))
    console.print(table)
    if json_file is not None:
        medians = {what: {name: statistics.median(v) for name, v in values.items()} for what, values in found.items()}
        record = {"machine": machine, "rows": counts, "tokens_per_second": medians}
        json_file.write_text(json.dumps(record, indent=1) + "\n")
    print_floor(engines, {name: statistics.median(values) for name, values in found["decode, 1 rows"].items()}, threads)
    if quality:
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


def run_llama(program: str, model: Path, threads: int, rows: list[int]) -> dict[str, float]:
    """Tokens per second by what they are of."""
    found = {}
    for prompt_tokens, answer, counts in ((8, DECODED, rows), (PROMPT, 1, [1])):
        context = max(counts) * (prompt_tokens + answer)
        command = [program, "-m", str(model), "-t", str(threads), "-c", str(context), "--output-format", "jsonl"]
        command += ["-npp", str(prompt_tokens), "-ntg", str(answer), "-npl", ",".join(map(str, counts))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                one = json.loads(line)
                name = f"prompt of {PROMPT}" if prompt_tokens == PROMPT else f"decode, {one['pl']} rows"
                found[name] = one["speed_pp" if prompt_tokens == PROMPT else "speed_tg"]
    return found


def say_build(program: str) -> None:
    """What llama.cpp says of itself, and how it was built where CMake's cache lies beside the program or above it."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    console.print("llama.cpp:", *(said.stdout + said.stderr).split("\n"), soft_wrap=True, highlight=False)
    for folder in list(Path(program).resolve().parents)[:2]:
        if (cache := folder / "CMakeCache.txt").is_file():
            flags = re.findall(r"^(?:GGML_\w+:BOOL=ON|CMAKE_BUILD_TYPE:.*)$", cache.read_text(), re.M)
            console.print(*sorted(flags), soft_wrap=True, highlight=False)
            return


def cpu_name() -> str:
    read = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", read)
    sets = [name for name, flag in (("AVX-512 VNNI", "avx512_vnni"), ("AVX2", "avx2")) if f" {flag}" in read]
    return f"{found[1] if found else 'a processor'} ({sets[0] if sets else 'neither AVX2 nor AVX-512'})"


def print_floor(engines: dict[str, Engine], tokens_a_second: dict[str, float], threads: int) -> None:
    """How near a step of one row comes to reading the weights."""
    peaks, stream = MachinePeaks(), np.zeros(256 << 18, np.float32)
    stream += 1  # pages of its own
    peaks.set_num_threads(threads)
    gigabytes = max(peaks.read_gbytes(stream.ctypes.data, stream.size) for _ in range(5))
    for name, engine in engines.items():
        held = sum(array.nbytes for array in map(host_view, engine.executor.model.ready_tensors().values()))
        floor, step = held / gigabytes / 1e6, 1e3 / tokens_a_second[name]
        console.print(
            f"{name}: {held / 1e6:.0f} MB of weights, {floor:.1f} ms at {gigabytes:.1f} GB/s; a step of one row takes "
            f"{step:.1f} ms, {floor / step:.0%} of it reading",
            soft_wrap=True,
        )


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
