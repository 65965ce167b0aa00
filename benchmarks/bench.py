"""SmolLM2 in one run: the engine in this process, the same engine through HTTP, and transformers where it is installed.

Engines compute from weights as they are stored, as is the default. transformers computes in float32, so that beside it an
engine with float32 weights takes its turn, and the two are compared.

    python -m benchmarks.bench [--rounds 3] [--reference PYTHON] [--trace FILE]

Contenders take turns, round after round, and the printed ratios are medians over rounds: what the machine does besides
hits all of them. ``--reference`` names a Python that has torch and transformers (default: this one, if it has).
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from actors.model_files.source import resolve_model
from benchmarks.bench_weight_formats import cpu_name
from benchmarks.held_weights import print_held
from benchmarks.in_process import InProcess
from benchmarks.serving.over_http import OverHttp
from benchmarks.workload import ANSWER_TOKENS, PROMPT_TOKENS, Timings
from cluster.config import DEFAULT_MODEL, EngineConfig

CONCURRENCY = (1, 8)
REQUESTS = {1: 3, 8: 24}
SETTINGS = {"max_num_seqs": 8}
TRACED_STEPS = 60
console = Console(width=max(100, Console().width))

Rounds = dict[tuple[str, int], list[Timings]]


def main(
    rounds: Annotated[int, typer.Option(help="Times every contender runs.")] = 3,
    reference: Annotated[str, typer.Option(help="Python with torch and transformers; empty: this one.")] = "",
    http: Annotated[bool, typer.Option(help="Measure the served path too.")] = True,
    trace: Annotated[str, typer.Option(help="File for a Chrome trace of steps with overlap, 8 streams.")] = "",
) -> None:
    """Print figures and ratios."""
    threads = len(os.sched_getaffinity(0))
    console.print(
        f"{cpu_name()}, {threads} cores, load {os.getloadavg()[0]:.1f} before; {PROMPT_TOKENS} prompt tokens, "
        f"{ANSWER_TOKENS} answer tokens, {rounds} rounds", highlight=False)  # fmt: skip
    python = _python_with_transformers(reference)
    contenders: dict[str, InProcess | OverHttp] = {}
    with console.status("loading the engine, with overlap and without"):
        for name, overlap in (("overlapped", True), ("plain", False)):
            contenders[name] = InProcess(EngineConfig(enable_overlap_schedule=overlap, num_threads=threads, **SETTINGS))
        if python:
            dense = EngineConfig(weight_format="float32", num_threads=threads, **SETTINGS)
            contenders["overlapped, float32"] = InProcess(dense)
    try:
        if http:
            with console.status("starting the application"):
                contenders["HTTP"] = OverHttp({**SETTINGS, "num_threads": threads}, _log_path())
        results = _measure(contenders, rounds)
        overlapped = contenders["overlapped"]
        if trace and isinstance(overlapped, InProcess):
            Path(trace).write_text(json.dumps(overlapped.record(8, TRACED_STEPS)))
    finally:
        for contender in contenders.values():
            contender.close()
    baseline = _transformers(python, threads, rounds) if python else {}
    _print_table(results, baseline)
    _print_ratios(results, baseline)
    print_held(DEFAULT_MODEL)
    console.print(f"load {os.getloadavg()[0]:.1f} after", highlight=False)


def _measure(contenders: dict[str, InProcess | OverHttp], rounds: int) -> Rounds:
    results: Rounds = {}
    for number in range(-1, rounds):
        for concurrency in CONCURRENCY:
            for name, contender in contenders.items():
                with console.status(f"round {max(number, 0) + 1} of {rounds}: {name}, {concurrency} at a time"):
                    timings = contender.run(concurrency, REQUESTS[concurrency] if number >= 0 else concurrency)
                if number >= 0:  # the first pass warms up
                    results.setdefault((name, concurrency), []).append(timings)
    return results


def _python_with_transformers(reference: str) -> str:
    """Empty if nobody named one and this one has no transformers."""
    if reference or all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return reference or sys.executable
    console.print("transformers is not installed here: --reference names a Python that has it", highlight=False)
    return ""


def _transformers(python: str, threads: int, rounds: int) -> dict[int, list[float]]:
    """Rows to tokens per second, one a round."""
    path = str(resolve_model(DEFAULT_MODEL).path)
    command = [python, "-m", "benchmarks.transformers_baseline", path, str(threads), str(rounds)]
    with console.status("transformers on torch, float32"):
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if run.returncode:
        raise typer.BadParameter(f"{python} could not run transformers:\n{run.stderr[-2000:]}")
    speeds: dict[int, list[float]] = {}
    for line in run.stdout.splitlines():
        row = json.loads(line)
        speeds.setdefault(row["rows"], []).append(row["tokens"] / row["seconds"])
    return speeds


def _median(values) -> float:
    return statistics.median(list(values))


def _print_table(results: Rounds, baseline: dict[int, list[float]]) -> None:
    table = Table("contender", "streams", "tokens/s", "first token ms (p50)", "per token ms (p50)", "step / device")
    for (name, concurrency), runs in sorted(results.items(), key=lambda item: item[0][1]):
        ratio = f"{_median(r.step_over_device for r in runs):.3f}" if runs[0].step else ""
        table.add_row(
            name, str(concurrency), f"{_median(r.tokens_per_second for r in runs):.1f}",
            f"{_median(r.first_token_ms for r in runs):.1f}", f"{_median(r.per_token_ms for r in runs):.2f}", ratio,
        )  # fmt: skip
    for rows, speeds in baseline.items():
        table.add_row("transformers", str(rows), f"{_median(speeds):.1f}", "", "", "")
    console.print(table)


def _print_ratios(results: Rounds, baseline: dict[int, list[float]]) -> None:
    def over_rounds(name: str, other: str, concurrency: int, value) -> float:
        pairs = zip(results[name, concurrency], results[other, concurrency], strict=True)
        return _median(value(a, b) for a, b in pairs)

    rows = []
    if baseline:
        for concurrency, wanted in ((1, 1.0), (8, 2.0)):
            speed = _median(r.tokens_per_second for r in results["overlapped, float32", concurrency])
            rows.append((f"tokens/s, {concurrency} streams, both in float32: overlapped / transformers",
                         speed / _median(baseline[concurrency]), f">= {wanted}"))  # fmt: skip
    for concurrency in CONCURRENCY:
        ratio = _median(r.step_over_device for r in results["overlapped", concurrency])
        rows.append((f"overlapped step / device time, {concurrency} streams", ratio, "<= 1.03"))
        faster = over_rounds("overlapped", "plain", concurrency, lambda a, b: _median(a.step) / _median(b.step))
        rows.append((f"overlapped step / plain step, {concurrency} streams", faster, "<= 1"))
        if ("HTTP", concurrency) in results:
            late = over_rounds("HTTP", "overlapped", concurrency, lambda a, b: a.first_token_ms - b.first_token_ms)
            longer = over_rounds("HTTP", "overlapped", concurrency, lambda a, b: a.per_token_ms - b.per_token_ms)
            rows.append((f"first token through HTTP later by (ms, p50), {concurrency} streams", late, "<= 10"))
            rows.append((f"step through HTTP longer by (ms, p50), {concurrency} streams", longer, "<= 0.8"))
    table = Table("ratio or difference", "measured", "target")
    for name, value, wanted in rows:
        table.add_row(name, f"{value:.3f}", wanted)
    console.print(table)


def _log_path() -> str:
    return str(Path(tempfile.mkdtemp(prefix="bireme-bench-"), "serve.log"))


if __name__ == "__main__":
    typer.run(main)
