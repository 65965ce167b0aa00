"""A served model under arrivals and aborts: what HTTP, Ray and the host cost beside the device.

    python -m benchmarks.gpu.bench_serving [--config ray_configs/llama_8b_gpu.yaml] [--clients 64] [--seconds 20]

Clients stream answers of random length to prompts of random length, and ask again; some leave in the middle of an answer. The
engine's own counters over the load say how long it had work and how long its device computed: their ratio is what everything
but the device costs. Figures come last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.memory import memory_text
from benchmarks.gpu.targets import HTTP_RATIO, verdict
from benchmarks.serving.loads import closed_loop
from benchmarks.serving.process_cpu import cpu_by_name
from benchmarks.serving.served_app import ServedApp
from cluster.bench.load import Load
from cluster.bench.processes import LoadProcesses, Result
from cluster.bench.prompts import PromptKind
from cluster.bench.summary import Targets, summarise

# One Python process reads some ten thousand tokens a second; it must not be what is measured.
CLIENT_PROCESSES = 4
LEAVER_SHARE = 0.1
TEMPERATURE = 0.8


def load(app: ServedApp, options: argparse.Namespace, seconds: float, seed: int) -> Load:
    """Clients in closed loops, some of whose requests are left in the middle of the answer."""
    whole = closed_loop(
        app, options.clients, (options.prompt, options.answer), seed, seconds=seconds, temperature=TEMPERATURE
    )
    rng = random.Random(seed)
    requests = tuple(
        replace(request, leaves_after=rng.randint(1, request.output_tokens)) if rng.random() < LEAVER_SHARE else request
        for request in whole.requests
    )
    return replace(whole, requests=requests, prompts=PromptKind(False, seed, 100, options.vocab_size))


def totals(app: ServedApp) -> dict[str, float]:
    """Sums over the engines of the counters that the report uses."""
    engines = app.engines()
    names = (
        "busy_seconds",
        "device_seconds",
        "late_seconds",
        "num_saved_steps",
        "num_generated_tokens",
        "num_prompt_tokens",
    )
    return {name: sum(engine[name] for engine in engines) for name in names}


def measure(app: ServedApp, options: argparse.Namespace) -> tuple[Result, dict[str, float], dict[str, float], float]:
    """Load for ``seconds`` after a short one that does not count: (clients, engine's counters, CPU seconds, duration)."""
    with LoadProcesses(min(CLIENT_PROCESSES, options.clients)) as clients:
        clients.start(load(app, options, options.warm_up, 100))
        clients.result()
        before, cpu_before, started = totals(app), cpu_by_name(), time.monotonic()
        tracing = threading.Timer(options.seconds / 2, record_timeline, (app, options.trace))
        if options.trace:
            tracing.start()
        clients.start(load(app, options, options.seconds, 1))
        result = clients.result()
        if options.trace:
            tracing.join()
        duration = time.monotonic() - started
        after, cpu_after = totals(app), cpu_by_name()
    counters = {name: after[name] - before[name] for name in after}
    cpu = {name: value - cpu_before.get(name, 0.0) for name, value in cpu_after.items()}
    return result, counters, cpu, duration


def record_timeline(app: ServedApp, path: Path) -> None:
    """Write a Chrome trace of the engine's next steps."""
    path.write_text(json.dumps(app.get("/v1/timeline?steps=300", 30)))


def report(app: ServedApp, options: argparse.Namespace) -> list[str]:
    """Measure, and say it in lines."""
    result, counters, cpu, duration = measure(app, options)
    seen = summarise(result, Targets())
    engine = app.engines()[0]
    ratio = counters["busy_seconds"] / counters["device_seconds"]
    steps = counters["num_saved_steps"]
    step_ms, device_ms, late_ms = (1e3 * counters[f"{name}_seconds"] / steps for name in ("busy", "device", "late"))
    lead_ms = 1e3 * engine["host_lead_seconds"]
    lines = [
        (
            f"{app.model} on {engine['device']}, {options.clients} clients, prompts of {_span(options.prompt)} "
            f"tokens, answers of {_span(options.answer)}; ready after {app.seconds_to_start:.1f} s"
        ),
        f"{seen['completed']} answers, {seen['unfinished']} left or cut, {seen['failed']} errors {list(seen['errors'])[:2]}",
        (
            f"{counters['num_generated_tokens'] / duration:.0f} tokens/s generated, "
            f"{counters['num_prompt_tokens'] / duration:.0f} prompt tokens/s, "
            f"{sum(len(s.arrivals) for s in result.samples) / duration:.0f} events/s at the clients, {duration:.1f} s"
        ),
        f"first token {_quantiles(seen, 'ttft')}; per token {_quantiles(seen, 'tpot')}, of whole answers",
        (
            f"{steps:.0f} steps: {step_ms:.2f} ms each, {device_ms:.2f} "
            f"on the device, {late_ms:.2f} of waiting for a launch; the host leaves itself {lead_ms:.2f} ms"
        ),
        "cores used: " + ", ".join(f"{n} {s / duration:.2f}" for n, s in sorted(cpu.items()) if s > 0.02 * duration),
    ]
    if "memory" in engine:
        lines.append(memory_text(engine["memory"]))
    if options.trace:
        lines.append(f"{options.trace}: {json.loads(options.trace.read_text())['otherData']}")
    return [*lines, f"step / device time through HTTP: {ratio:.3f} ({verdict(ratio, HTTP_RATIO)})"]


def _quantiles(seen: dict[str, Any], name: str) -> str:
    p50, p90, p99 = (seen[f"{kind}_{name}_ms"] for kind in ("median", "p90", "p99"))
    return "none" if p50 is None else f"p50 {p50:.1f} ms, p90 {p90:.1f}, p99 {p99:.1f}"


def _span(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]} to {bounds[1]}"


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("ray_configs/llama_8b_gpu.yaml"))
    parser.add_argument("--set", type=_setting, nargs="*", default=[], metavar="NAME=VALUE", help="settings besides")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--prompt", type=_range, default=(128, 1024), help="tokens, LOW-HIGH")
    parser.add_argument("--answer", type=_range, default=(64, 256), help="tokens, LOW-HIGH")
    parser.add_argument("--vocab-size", type=int, default=49000, help="prompt tokens are drawn below it")
    parser.add_argument("--trace", type=Path, help="file for a Chrome trace of some steps under load")
    parser.add_argument("--log", default=os.path.join(tempfile.gettempdir(), "bireme-serving.log"))
    options = parser.parse_args()
    app = ServedApp(options.config, options.log, dict(options.set))
    try:
        lines = report(app, options)
    finally:
        app.close()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
