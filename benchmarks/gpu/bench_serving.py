"""A served model under arrivals and aborts: what HTTP, Ray and the host cost beside the device.

    python -m benchmarks.gpu.bench_serving [--config ray_configs/llama_8b_gpu.yaml] [--clients 64] [--seconds 20]

Clients stream answers of random length to prompts of random length, pause for a moment and ask again; some vanish in the
middle of an answer. The engine's own counters over the load say how long it had work and how long its device computed:
their ratio is what everything but the device costs. Figures come last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.memory import memory_text
from benchmarks.gpu.targets import HTTP_RATIO, verdict
from benchmarks.serving.served_app import ServedApp

# One Python process reads some ten thousand tokens a second; it must not be what is measured.
CLIENT_PROCESSES = 4
ABORT_SHARE = 0.1
MEAN_PAUSE_S = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """What clients saw; times in seconds, stamps of the system's monotonic clock."""

    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    finished: int = 0
    aborted: int = 0
    errors: list[str] = field(default_factory=list)

    def merge(self, other: Measured) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Load:
    """Closed-loop clients of one process."""

    port: int
    model: str
    clients: int
    until: float
    seed: int
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    vocab_size: int


def run_clients(load: Load) -> Measured:
    """Every client of one process, to the end of the load."""
    return asyncio.run(_run_clients(load))


async def _run_clients(load: Load) -> Measured:
    measured = Measured()
    await asyncio.gather(*(_client(load, random.Random(load.seed * 1000 + i), measured) for i in range(load.clients)))
    return measured


async def _client(load: Load, rng: random.Random, measured: Measured) -> None:
    while time.monotonic() < load.until:
        await asyncio.sleep(rng.expovariate(1 / MEAN_PAUSE_S))
        prompt = [rng.randrange(100, load.vocab_size) for _ in range(rng.randint(*load.prompt_tokens))]
        answer = rng.randint(*load.answer_tokens)
        leave_after = rng.randint(1, answer) if rng.random() < ABORT_SHARE else None
        try:
            await _stream(load, prompt, answer, leave_after, measured)
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            measured.errors.append(f"{type(error).__name__}: {error}"[:200])


async def _stream(load: Load, prompt: list[int], answer: int, leave_after: int | None, measured: Measured) -> None:
    body = json.dumps({
        "model": load.model, "prompt": prompt, "max_tokens": answer, "temperature": 0.8, "ignore_eos": True,
        "stream": True, "return_token_ids": True,
    }).encode()  # fmt: skip
    asked, stamps = time.monotonic(), []
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port, limit=1 << 20)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        async for line in _lines(reader):
            if line.startswith(b"data: {"):
                count = sum(len(choice.get("token_ids") or []) for choice in json.loads(line[6:])["choices"])
                stamps += [time.monotonic()] * count
                if leave_after is not None and len(stamps) >= leave_after:
                    break
    finally:
        writer.close()
    measured.arrivals += stamps
    if leave_after is None and len(stamps) != answer:
        raise RuntimeError(f"{len(stamps)} of {answer} tokens arrived")
    measured.finished += leave_after is None
    measured.aborted += leave_after is not None
    measured.first_token.append(stamps[0] - asked)
    if len(stamps) > 1:
        measured.per_token.append((stamps[-1] - stamps[0]) / (len(stamps) - 1))


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a chunked HTTP body, which may be cut anywhere.

    Raises:
        RuntimeError: the status is not 200, or the body is not chunked.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.partition(b"\r\n")[0] or b"transfer-encoding: chunked" not in head:
        raise RuntimeError(head.decode(errors="replace").strip())
    rest = b""
    while size := int(await reader.readline(), 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in lines:
            yield line


def processor_seconds() -> dict[str, float]:
    """CPU seconds so far of Ray's named workers and the proxy on this machine, by name."""
    seconds: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended in between
            continue
        if name.startswith("ray::") or "haproxy" in name.split(" ")[0]:
            key = name.split(" ")[0].rpartition("/")[2].rpartition(":")[2].rpartition(".")[0] or name.split(" ")[0]
            seconds[key] = seconds.get(key, 0.0) + (int(stat[11]) + int(stat[12])) / _TICKS
    return seconds


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


def measure(app: ServedApp, options: argparse.Namespace) -> tuple[Measured, dict[str, float], dict[str, float], float]:
    """Load for ``seconds`` after a short one that does not count: (clients, engine's counters, CPU seconds, duration)."""
    context = multiprocessing.get_context("spawn")
    processes = min(CLIENT_PROCESSES, options.clients)
    shares = [options.clients // processes + (i < options.clients % processes) for i in range(processes)]

    def run(pool: ProcessPoolExecutor, seconds: float, seed: int) -> Measured:
        until = time.monotonic() + seconds
        loads = [
            Load(app.port, app.model, share, until, seed + i, options.prompt, options.answer, options.vocab_size)
            for i, share in enumerate(shares)
        ]
        whole = Measured()
        for part in pool.map(run_clients, loads):
            whole.merge(part)
        return whole

    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        run(pool, options.warm_up, 100)
        before, cpu_before, started = totals(app), processor_seconds(), time.monotonic()
        tracing = threading.Timer(options.seconds / 2, record_timeline, (app, options.trace))
        if options.trace:
            tracing.start()
        measured = run(pool, options.seconds, 1)
        if options.trace:
            tracing.join()
        duration = time.monotonic() - started
        after, cpu_after = totals(app), processor_seconds()
    counters = {name: after[name] - before[name] for name in after}
    cpu = {name: value - cpu_before.get(name, 0.0) for name, value in cpu_after.items()}
    return measured, counters, cpu, duration


def record_timeline(app: ServedApp, path: Path) -> None:
    """Write a Chrome trace of the engine's next steps."""
    path.write_text(json.dumps(app.get("/v1/timeline?steps=300", 30)))


def report(app: ServedApp, options: argparse.Namespace) -> list[str]:
    """Measure, and say it in lines."""
    measured, counters, cpu, duration = measure(app, options)
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
        f"{measured.finished} answers, {measured.aborted} abandoned, {len(measured.errors)} errors {measured.errors[:2]}",
        (
            f"{counters['num_generated_tokens'] / duration:.0f} tokens/s generated, "
            f"{counters['num_prompt_tokens'] / duration:.0f} prompt tokens/s, "
            f"{len(measured.arrivals) / duration:.0f} tokens/s at the clients, {duration:.1f} s"
        ),
        f"first token {_quantiles(measured.first_token)}; per token {_quantiles(measured.per_token)}",
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


def _quantiles(seconds: list[float]) -> str:
    p50, p90, p99 = (1e3 * np.quantile(seconds, q) for q in (0.5, 0.9, 0.99))
    return f"p50 {p50:.1f} ms, p90 {p90:.1f}, p99 {p99:.1f}"


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
