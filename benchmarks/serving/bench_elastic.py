"""How long requests wait that come when one engine is full and a second one is yet to start.

    python -m benchmarks.serving.bench_elastic [--streams 32] [--slots 8] [--max-tokens 128] [--rounds 3]

The default model, one engine that Serve may scale to two, as `bireme serve` starts it. Each round begins with one engine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.serving.loads import checked, closed_loop
from benchmarks.serving.served_app import ServedApp, settings_config
from cluster.bench.driver import Progress
from cluster.bench.processes import LoadProcesses

_ROUND_TIMEOUT_S = 300.0
_PROMPT_TOKENS = 6


def main(
    streams: Annotated[int, typer.Option(help="Requests that come at once.")] = 32,
    slots: Annotated[int, typer.Option(help="Requests that one engine runs at a time.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Times that the load comes.")] = 3,
) -> None:
    """Measure, and print a line a round."""
    settings: dict[str, Any] = {
        "max_num_seqs": slots,
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_ongoing_requests": slots,
                "upscale_delay_s": 0.5,
                "downscale_delay_s": 5.0,
                "metrics_interval_s": 0.5,
                "look_back_period_s": 1.0,
            }
        },
    }
    table = Table(
        "round", "second engine after", "first token p50", "p95", "all answered", "tokens of each engine", "moved"
    )
    app = ServedApp(settings_config(settings), f"{tempfile.mkdtemp()}/server.log")
    clients = LoadProcesses(1)
    try:
        for number in range(rounds):
            table.add_row(str(number + 1), *_round(app, clients, streams, max_tokens, number))
    finally:
        clients.close()
        app.close()
    Console(width=130).print(table)


def _round(app: ServedApp, clients: LoadProcesses, streams: int, max_tokens: int, number: int) -> list[str]:
    deadline = time.monotonic() + _ROUND_TIMEOUT_S
    while len(app.engines()) != 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    before = {engine["engine_id"]: engine["num_generated_tokens"] for engine in app.engines()}
    moved = _moves(app)
    first, seconds, second_engine_s = _load(app, clients, streams, max_tokens, number)
    made = [e["num_generated_tokens"] - before.get(e["engine_id"], 0) for e in app.engines()]
    first.sort()
    return [
        "none" if second_engine_s is None else f"{second_engine_s:.1f} s",
        f"{statistics.median(first):.1f} s",
        f"{first[int(0.95 * len(first))]:.1f} s",
        f"{seconds:.1f} s",
        " + ".join(map(str, made)),
        str(_moves(app) - moved),
    ]


def _moves(app: ServedApp) -> int:
    return app.get("/v1/status")["events"].get("bireme_request_moves", 0)


def _load(
    app: ServedApp, clients: LoadProcesses, streams: int, max_tokens: int, seed: int
) -> tuple[list[float], float, float | None]:
    """(seconds to the first token of each request, until all were answered, until there was a second engine)."""
    load = closed_loop(app, streams, (_PROMPT_TOKENS, max_tokens), seed, requests=streams, seconds=_ROUND_TIMEOUT_S)
    begin, second_engine_s = clients.start(load), None

    def look(_: Progress) -> None:
        nonlocal second_engine_s
        if second_engine_s is None and len(app.get("/v1/status")["engines"]) > 1:
            second_engine_s = time.perf_counter() - begin

    result = checked(clients.result(look))
    return [sample.ttft for sample in result.samples], result.seconds, second_engine_s


if __name__ == "__main__":
    typer.run(main)
